"""Which blocks leave when a budget is reached: unleased leaves, least recently used first."""

import threading
from collections import Counter
from collections.abc import Iterable, Iterator
from contextlib import contextmanager

from centroidkv.kv.manifest import Manifest

LEAVES_A_LOOK = 256

__all__ = ["Leases", "leaves_to_evict"]


class Leases:
    """Counts the running requests that use a block, so that eviction leaves it alone."""

    def __init__(self) -> None:
        self._counts: Counter[str] = Counter()
        self._lock = threading.Lock()

    @contextmanager
    def hold(self, block_ids: Iterable[str]) -> Iterator[None]:
        """Keep blocks from being evicted while the body runs."""
        held = list(block_ids)
        with self._lock:
            self._counts.update(held)
        try:
            yield
        finally:
            with self._lock:
                self._counts.subtract(held)
                self._counts += Counter()

    def __contains__(self, block_id: str) -> bool:
        return self._counts[block_id] > 0


def leaves_to_evict(manifest: Manifest, excess_bytes: int, leases: Leases) -> list[str]:
    """Choose leaves worth at least `excess_bytes`, or all there are in this round.

    Only leaves go, since a block without its parent can never be matched. A chain is eaten from
    its end over several rounds.
    """
    chosen: list[str] = []
    seen = 0
    while excess_bytes > 0 and (leaves := manifest.leaves(LEAVES_A_LOOK, seen)):
        seen += len(leaves)
        for block, num_bytes in leaves:
            if excess_bytes > 0 and block not in leases:
                chosen.append(block)
                excess_bytes -= num_bytes
    return chosen
