"""A file system that fails on command, over fsspec's one in memory: for tests of remotes."""

import threading
import time
from typing import Any, ClassVar

from fsspec.implementations.memory import MemoryFileSystem

__all__ = ["FailingFiles"]


class FailingFiles(MemoryFileSystem):
    """Memory, with a `fault` that every call meets: None, slow, hang, denied, gone, cut, altered.

    `calls` counts what was asked of it.
    """

    protocol = "failing"
    cachable = False
    store: ClassVar[dict[str, Any]] = {}
    pseudo_dirs: ClassVar[list[str]] = [""]
    root_marker = "/"

    fault: ClassVar[str | None] = None
    after: ClassVar[int] = 0
    calls: ClassVar[list[str]] = []
    let_go: ClassVar[threading.Event] = threading.Event()

    @classmethod
    def start_anew(cls) -> None:
        cls.store.clear()
        cls.pseudo_dirs[:] = [""]
        cls.calls.clear()
        cls.fault, cls.after = None, 0
        cls.let_go = threading.Event()

    @classmethod
    def _strip_protocol(cls, path: str) -> str:
        return MemoryFileSystem._strip_protocol(path.replace("failing://", "memory://"))

    def _meet(self, call: str) -> None:
        type(self).calls.append(call)
        if self.fault is None or len(self.calls) <= self.after:
            return
        if self.fault == "slow":
            time.sleep(0.05)
        if self.fault == "hang":
            self.let_go.wait(30)
        if self.fault == "denied":
            raise PermissionError("no access to this bucket")
        if self.fault == "gone":
            raise ConnectionResetError("connection reset by peer")

    def info(self, path: str, **options: Any) -> dict[str, Any]:
        self._meet("info")
        return super().info(path, **options)

    def cat_file(self, path: str, *args: Any, **options: Any) -> bytes:
        self._meet("read")
        raw = super().cat_file(path, *args, **options)
        if self.fault == "cut":
            return raw[: len(raw) // 2]
        if self.fault == "altered":
            return raw[:-1] + bytes([raw[-1] ^ 1])
        return raw

    def pipe_file(self, path: str, value: bytes, **options: Any) -> None:
        self._meet("write")
        super().pipe_file(path, value, **options)

    def find(self, path: str, *args: Any, **options: Any) -> Any:
        self._meet("list")
        return super().find(path, *args, **options)
