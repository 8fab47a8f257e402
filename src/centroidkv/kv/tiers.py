"""Memory above disk, as one block store.

New blocks are in memory at once and on disk soon after, so that the next request finds them
without waiting for the disk.
"""

import logging
import sqlite3
import time
from collections import deque
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass

from centroidkv.kv.bandwidth import Tier
from centroidkv.kv.blocks import Match, Piece, is_root, longest_prefix
from centroidkv.kv.disk import DiskBlocks
from centroidkv.kv.memory import MemoryBlocks
from centroidkv.types import KVBlock

_log = logging.getLogger("centroidkv")

READ_AHEAD = 2  # blocks

__all__ = ["Place", "TieredBlocks"]


@dataclass(frozen=True, slots=True)
class Place:
    """The fastest tier that has a block, and its bytes there by level, finest first."""

    tier: Tier
    sizes: Mapping[str, int]


class TieredBlocks:
    """The blocks of an engine over all its tiers. See `BlockLookup` for the contract."""

    def __init__(self, memory: MemoryBlocks, disk: DiskBlocks) -> None:
        self.memory = memory
        self.disk = disk
        self.meter = disk.meter

    def has(self, block: str) -> bool:
        return self.memory.has(block) or self.disk.has(block)

    def neighbours(
        self, parent: str, token_ids: Sequence[int]
    ) -> list[tuple[str, tuple[int, ...]]]:
        return [
            *self.memory.neighbours(parent, token_ids),
            *self.disk.neighbours(parent, token_ids),
        ]

    def get(self, block: str) -> KVBlock | None:
        """Return a block from the fastest tier that has it, and keep it in memory."""
        return self.fetch(block)

    def where(self, block: str) -> Place | None:
        """Tell the fastest tier that has a block, and its bytes at each level there."""
        held = self.memory.peek(block)
        if held is not None:
            return Place("memory", {"raw": held.num_bytes})
        row = self.disk.manifest.get(block)
        if row is not None:
            return Place("disk", {row.level: row.num_bytes})
        return None

    def fetch(self, block: str, level: str | None = None) -> KVBlock | None:  # noqa: ARG002
        """Return a block, from a remote at a level of its; None if it is nowhere, or unusable.

        Never raises for bad files or remotes. What memory or disk has is taken as it is there.
        """
        started = time.perf_counter()
        held = self.memory.get(block)
        if held is not None:
            self.meter.timed("memory", held.num_bytes, time.perf_counter() - started)
            return held
        row = self.disk.manifest.get(block)
        found = self.disk.read(row) if row is not None else None
        if row is None or found is None:
            return None
        self.memory.put(row.parent, row.token_ids, found)
        return found

    def in_turn(self, blocks: Sequence[str]) -> Iterator[KVBlock | None]:
        """Yield what `get` returns, in order; what is on disk is read while the last is used."""
        if all(self.memory.has(b) for b in blocks):
            yield from map(self.get, blocks)
            return
        ahead: deque[Future[KVBlock | None]] = deque()
        with ThreadPoolExecutor(1, thread_name_prefix="centroidkv-read") as reader:
            for block in blocks:
                ahead.append(reader.submit(self.get, block))
                if len(ahead) > READ_AHEAD:
                    yield ahead.popleft().result()
            while ahead:
                yield ahead.popleft().result()

    def match(self, namespace: str, token_ids: Sequence[int]) -> Match:
        """Find the longest stored prefix of a prompt."""
        return longest_prefix(self, namespace, token_ids)

    def prefetch(self, last_block: str) -> None:
        """Bring a chain of blocks into memory, first block first, as far as the budget goes."""
        room = self.memory.budget_bytes
        for row in self.disk.manifest.chain(last_block):
            room -= row.num_bytes
            if room < 0:
                return
            self.get(row.id)

    def keep(self, pieces: Sequence[Piece]) -> None:
        """Put blocks into the memory tier, where the next request finds them."""
        for piece in pieces:
            self.memory.put(piece.parent, piece.token_ids, piece.block)

    def persist(self, pieces: Sequence[Piece]) -> str | None:
        """Put blocks onto disk, parents first; return the id that ends the sequence there.

        Raises:
            CacheFull: A block does not fit into the disk budget.
            OSError: The disk refuses.
        """
        if self.disk.read_only:
            return None
        last: str | None = None
        for piece in [*self._missing_before(pieces), *pieces]:
            last = self.disk.put(piece.parent, piece.token_ids, piece.block)
        return last

    def _missing_before(self, pieces: Sequence[Piece]) -> list[Piece]:
        """Return the blocks before `pieces` that the disk has evicted and memory still holds."""
        missing: list[Piece] = []
        parent = pieces[0].parent if pieces else ""
        while parent and not is_root(parent) and not self.disk.has(parent):
            piece = self.memory.piece(parent)
            if piece is None:
                break
            missing.append(piece)
            parent = piece.parent
        return missing[::-1]

    def touch(self, block_ids: Sequence[str]) -> None:
        """Mark blocks as used, for eviction."""
        if not self.disk.read_only and block_ids:
            try:
                self.disk.manifest.touch(block_ids)
            except sqlite3.Error as error:
                _log.warning("recency could not be noted: %s", error)
