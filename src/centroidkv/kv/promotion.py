"""Blocks that came from a remote go to disk, behind the answer, parents first.

They come in any order, since several are asked for at once; one whose parent is not on disk yet
waits for it, in a bounded room.
"""

import threading
from collections import OrderedDict
from collections.abc import Callable
from typing import TypeAlias

from centroidkv.kv.blocks import is_root
from centroidkv.kv.disk import DiskBlocks
from centroidkv.kv.remote import Received

WAITING_BYTES = 128 << 20

# Does a job that holds so many bytes, some time.
Later: TypeAlias = Callable[[Callable[[], None], int], object]

__all__ = ["Later", "Promotion"]


class Promotion:
    """Takes blocks of a remote onto disk, as they came. Safe for many threads."""

    def __init__(self, disk: DiskBlocks) -> None:
        self.later: Later = lambda job, _: job()
        self._disk = disk
        self._waiting: OrderedDict[str, Received] = OrderedDict()
        self._lock = threading.Lock()

    def offer(self, received: Received) -> None:
        """Have a block written when its turn comes."""
        if self._disk.takes(received.stored):
            self.later(lambda: self._take(received), len(received.raw))

    def _take(self, received: Received) -> None:
        with self._lock:
            self._waiting[received.stored.id] = received
            while ready := next(filter(self._is_next, self._waiting.values()), None):
                del self._waiting[ready.stored.id]
                self._disk.adopt(ready.stored, ready.raw)
            while sum(len(r.raw) for r in self._waiting.values()) > WAITING_BYTES:
                self._waiting.popitem(last=False)

    def _is_next(self, received: Received) -> bool:
        parent = received.stored.parent
        return is_root(parent) or self._disk.has(parent)
