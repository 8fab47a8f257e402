"""What is known of a remote without asking it: blocks seen there, and where a lookup ended.

What is known may be out of date; that costs a question, or a block computed once more.
"""

import threading
import time
from collections import OrderedDict
from collections.abc import Callable, Mapping
from typing import TypeVar

PRESENT_S = 600.0
ABSENT_S = 30.0
UNUSABLE_S = 600.0
MOST = 100_000
NEVER: tuple[float, dict[str, int]] = (float("-inf"), {})

K = TypeVar("K")
V = TypeVar("V")

__all__ = ["KnownBlocks"]


class KnownBlocks:
    """Remembers for a while what a remote holds, lacks, and holds in vain."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._lock = threading.Lock()
        # Each with the time that it is known until, the first to end in front.
        self._present: OrderedDict[str, tuple[float, dict[str, int]]] = OrderedDict()
        self._absent: OrderedDict[str, tuple[float, None]] = OrderedDict()
        self._unusable: OrderedDict[tuple[str, str], tuple[float, None]] = OrderedDict()

    def __len__(self) -> int:
        """Return the number of things remembered, of all kinds."""
        return len(self._present) + len(self._absent) + len(self._unusable)

    def sizes(self, block: str) -> dict[str, int]:
        """Return the bytes of a block by level, as far as it is known to be there and usable."""
        with self._lock:
            until, sizes = self._present.get(block, NEVER)
            now = self._clock()
            if now > until:
                return {}
            return {
                level: size
                for level, size in sizes.items()
                if now > self._unusable.get((block, level), NEVER)[0]
            }

    def is_absent(self, block: str) -> bool:
        """Tell whether the remote was asked for a block lately, and had none."""
        return self._clock() < self._absent.get(block, NEVER)[0]

    def present(self, block: str, sizes: Mapping[str, int]) -> None:
        """Note a block that is there."""
        with self._lock:
            self._absent.pop(block, None)
            self._note(self._present, block, PRESENT_S, dict(sizes))

    def absent(self, block: str) -> None:
        """Note a block that is not there."""
        with self._lock:
            self._present.pop(block, None)
            self._note(self._absent, block, ABSENT_S, None)

    def unusable(self, block: str, level: str) -> None:
        """Note an entry that is there in vain, so that it is not asked for again for a while."""
        with self._lock:
            self._note(self._unusable, (block, level), UNUSABLE_S, None)

    def written(self, block: str, sizes: Mapping[str, int]) -> None:
        """Note a block that was just written: whatever was there before."""
        with self._lock:
            for level in sizes:
                self._unusable.pop((block, level), None)
        self.present(block, sizes)

    def _note(
        self, entries: OrderedDict[K, tuple[float, V]], key: K, lasting_s: float, what: V
    ) -> None:
        """Remember something; let go of what has ended, and of the oldest beyond `MOST`."""
        now = self._clock()
        entries[key] = (now + lasting_s, what)
        entries.move_to_end(key)
        while len(entries) > MOST or next(iter(entries.values()))[0] < now:
            entries.popitem(last=False)
