"""An engine that needs the event loop to turn before it does what may take long."""

import asyncio
import threading
from collections.abc import Iterator
from contextvars import ContextVar
from pathlib import Path
from typing import Any

from centroidkv import Engine
from centroidkv.types import Chunk
from small_parts import HashEmbedder

# Long enough for a busy machine; waited for only where the loop is held.
PATIENCE_S = 10.0

caller: ContextVar[str] = ContextVar("caller", default="nobody")

__all__ = ["LoopEngine", "caller", "open_loop_engine"]


class LoopEngine(Engine):
    """Notes which of its steps ran beside the event loop, and which held it.

    With `loop` set, each step waits for what only the loop can do. `seen` are the values of
    `caller` in the steps, whose names are in `beside` and `holding`.
    """

    loop: asyncio.AbstractEventLoop | None = None

    def watch(self) -> None:
        self.loop = asyncio.get_running_loop()
        self.beside: list[str] = []
        self.holding: list[str] = []
        self.seen: set[str] = set()

    def for_tenant(self, tenant: str, **options: Any) -> Engine:
        self._needs_the_loop("for_tenant")
        return super().for_tenant(tenant, **options)

    def route(self, *args: Any, **options: Any) -> Any:
        self._needs_the_loop("route")
        return super().route(*args, **options)

    def compose(self, *args: Any, **options: Any) -> Any:
        self._needs_the_loop("compose")
        return super().compose(*args, **options)

    def stream(self, *args: Any, **options: Any) -> Iterator[Chunk]:
        self._needs_the_loop("stream")
        return super().stream(*args, **options)

    def _needs_the_loop(self, step: str) -> None:
        if self.loop is None:
            return
        turned = threading.Event()
        self.loop.call_soon_threadsafe(turned.set)
        is_beside = turned.wait(PATIENCE_S)
        (self.beside if is_beside else self.holding).append(step)
        self.seen.add(caller.get())


def open_loop_engine(path: Path, model: Any, **options: Any) -> LoopEngine:
    return LoopEngine.open(path, model=model, embedder=HashEmbedder(), **options)
