"""A link of a given speed and latency, as a file system that fsspec can open.

Bytes stand in line for one link, first come, first served, whatever reads at the same time.
"""

import threading
import time
from dataclasses import dataclass, field
from typing import Any, ClassVar

import fsspec
from fsspec.implementations.memory import MemoryFileSystem


@dataclass(slots=True)
class Link:
    """How fast bytes come. `raw_share` is the part of a raw block's bytes that counts."""

    bits_per_s: float = float("inf")
    latency_s: float = 0.0
    raw_share: float = 1.0
    _free_s: float = 0.0
    _lock: threading.Lock = field(default_factory=threading.Lock)

    def carry(self, num_bytes: float) -> None:
        """Wait until so many bytes are through."""
        with self._lock:
            begin = max(time.perf_counter() + self.latency_s, self._free_s)
            self._free_s = begin + 8 * num_bytes / self.bits_per_s
            until = self._free_s
        if (left_s := until - time.perf_counter()) > 0:
            time.sleep(left_s)


LINK = Link()


class ThrottledFileSystem(MemoryFileSystem):
    """fsspec's memory behind `LINK`."""

    protocol = "throttled"
    store: ClassVar[dict[str, Any]] = {}
    pseudo_dirs: ClassVar[list[str]] = [""]

    @classmethod
    def _strip_protocol(cls, path: str) -> str:
        return MemoryFileSystem._strip_protocol(path.replace("throttled://", "memory://"))

    def info(self, path: str, **options: Any) -> dict[str, Any]:
        LINK.carry(0)
        return super().info(path, **options)

    def cat_file(self, path: str, *args: Any, **options: Any) -> bytes:
        raw = bytes(super().cat_file(path, *args, **options))
        LINK.carry(len(raw) * (LINK.raw_share if path.endswith(".raw") else 1.0))
        return raw


fsspec.register_implementation("throttled", ThrottledFileSystem, clobber=True)
