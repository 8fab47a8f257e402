"""The byte budget of a remote: what lies there, and what leaves when there is no room.

A remote is shared: its listing is the truth, own writes are counted in between. What this machine
knows of a block (its parent, its worth) decides; a block that it knows nothing of goes before
those, the one longest unused or unwritten first.
"""

import heapq
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field

from centroidkv.kv.byte_store import Entry

# Of the budget so much is made free at a time, and written between two listings, since others
# write too.
FREE_SHARE = 0.05

__all__ = ["RemoteBudget", "block_of", "leaving"]

# A block's parent and worth, where this machine has it.
Standing = Callable[[str], "tuple[str, float] | None"]


@dataclass(slots=True)
class RemoteBudget:
    """Counts the bytes under a remote's prefix. `used_bytes` is None before the first listing."""

    budget_bytes: int
    standing: Standing
    used_bytes: int | None = field(default=None, init=False)
    _written_bytes: int = field(default=0, init=False)  # since the last listing

    def has_room(self, num_bytes: int) -> bool:
        """Tell whether so many bytes fit, as far as that is known without a listing."""
        is_known = self._written_bytes + num_bytes <= FREE_SHARE * self.budget_bytes
        return is_known and self.fits(num_bytes)

    def fits(self, num_bytes: int) -> bool:
        return self.used_bytes is not None and self.used_bytes + num_bytes <= self.budget_bytes

    def listed(self, entries: Sequence[Entry], num_bytes: int, keep: str) -> list[str]:
        """Take a listing as the truth; return what to delete so that `num_bytes` fit.

        Nothing, if that would not be enough. Block `keep` is what the new one continues.
        """
        self.used_bytes, self._written_bytes = sum(e.num_bytes for e in entries), 0
        if self.fits(num_bytes):
            return []
        target = (1 - FREE_SHARE) * self.budget_bytes - num_bytes
        names = leaving(entries, self.used_bytes - max(0, int(target)), self.standing, keep)
        gone = set(names)
        left_bytes = self.used_bytes - sum(e.num_bytes for e in entries if e.name in gone)
        if left_bytes + num_bytes > self.budget_bytes:
            return []
        self.used_bytes = left_bytes
        return names

    def wrote(self, num_bytes: int) -> None:
        self._written_bytes += num_bytes
        if self.used_bytes is not None:
            self.used_bytes += num_bytes


@dataclass(slots=True)
class _Block:
    """A block at all its levels."""

    num_bytes: int = 0
    written_s: float = 0.0
    names: list[str] = field(default_factory=list)


def leaving(
    entries: Iterable[Entry], excess_bytes: int, standing: Standing, keep: str = ""
) -> list[str]:
    """Choose names worth at least `excess_bytes`: whole blocks, none before what continues it."""
    blocks: dict[str, _Block] = {}
    for entry in entries:
        block = blocks.setdefault(block_of(entry.name), _Block())
        block.num_bytes += entry.num_bytes
        block.written_s = max(block.written_s, entry.written_s)
        block.names.append(entry.name)
    known = {own: standing(own) for own in blocks}
    children = Counter([keep, *(place[0] for place in known.values() if place is not None)])

    def turn(own: str) -> tuple[bool, float, float, str]:
        place = known[own]
        return place is not None, place[1] if place else 0.0, blocks[own].written_s, own

    leaves = [turn(own) for own in blocks if not children[own]]
    heapq.heapify(leaves)
    chosen: list[str] = []
    while leaves and excess_bytes > 0:
        own = heapq.heappop(leaves)[-1]
        chosen += blocks[own].names
        excess_bytes -= blocks[own].num_bytes
        place = known[own]
        if place is not None:
            children[place[0]] -= 1
            if not children[place[0]] and place[0] in blocks:
                heapq.heappush(leaves, turn(place[0]))
    return chosen


def block_of(name: str) -> str:
    """Return the block that an entry's name is of."""
    return name.rsplit("/", 1)[-1].split(".", 1)[0]
