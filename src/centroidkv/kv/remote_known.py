"""What is known of a remote without asking it: blocks seen there, and where a lookup ended.

What is known may be out of date; that costs a question, or a block computed once more.
"""

import threading
import time
from collections import OrderedDict
from collections.abc import Callable, Mapping
from typing import Any

PRESENT_S = 600.0
ABSENT_S = 30.0
UNUSABLE_S = 600.0
MOST = 100_000

__all__ = ["KnownBlocks"]


class KnownBlocks:
    """Remembers for a while what a remote holds, lacks, and holds in vain."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._lock = threading.Lock()
        self._present: OrderedDict[str, tuple[float, dict[str, int]]] = OrderedDict()
        self._absent: OrderedDict[str, float] = OrderedDict()
        self._unusable: OrderedDict[tuple[str, str], float] = OrderedDict()

    def sizes(self, block: str) -> dict[str, int]:
        """Return the bytes of a block by level, as far as it is known to be there and usable."""
        with self._lock:
            seen, sizes = self._present.get(block, (0.0, {}))
            now = self._clock()
            if now > seen + PRESENT_S:
                return {}
            return {
                level: size
                for level, size in sizes.items()
                if now > self._unusable.get((block, level), now - 1)
            }

    def is_absent(self, block: str) -> bool:
        """Tell whether the remote was asked for a block lately, and had none."""
        return self._clock() < self._absent.get(block, float("-inf"))

    def present(self, block: str, sizes: Mapping[str, int]) -> None:
        """Note a block that is there."""
        with self._lock:
            self._absent.pop(block, None)
            self._present[block] = (self._clock(), dict(sizes))
            self._present.move_to_end(block)
            _bound(self._present)

    def absent(self, block: str) -> None:
        """Note a block that is not there."""
        with self._lock:
            self._present.pop(block, None)
            self._absent[block] = self._clock() + ABSENT_S
            self._absent.move_to_end(block)
            _bound(self._absent)

    def unusable(self, block: str, level: str) -> None:
        """Note an entry that is there in vain, so that it is not asked for again for a while."""
        with self._lock:
            self._unusable[block, level] = self._clock() + UNUSABLE_S
            self._unusable.move_to_end((block, level))
            _bound(self._unusable)

    def written(self, block: str, sizes: Mapping[str, int]) -> None:
        """Note a block that was just written: whatever was there before."""
        with self._lock:
            for level in sizes:
                self._unusable.pop((block, level), None)
        self.present(block, sizes)


def _bound(entries: OrderedDict[Any, Any]) -> None:
    while len(entries) > MOST:
        entries.popitem(last=False)
