"""Memory above disk above a remote, as one block store.

New blocks are in memory at once and on disk soon after, so that the next request finds them
without waiting for the disk.
"""

import logging
import sqlite3
import time
from collections import deque
from collections.abc import Generator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass

from centroidkv.block_form import BlockForm
from centroidkv.errors import CacheError
from centroidkv.kv.bandwidth import Tier
from centroidkv.kv.blocks import (
    BLOCK_TOKENS,
    Match,
    Piece,
    block_id,
    chain,
    is_root,
    longest_prefix,
)
from centroidkv.kv.disk import DiskBlocks
from centroidkv.kv.memory import MemoryBlocks
from centroidkv.kv.promotion import Promotion
from centroidkv.kv.remote import RemoteBlocks
from centroidkv.kv.uploads import Uploads
from centroidkv.types import KVBlock

_log = logging.getLogger("centroidkv")

FAR_READERS = 4  # a remote answers several at a time

__all__ = ["Place", "TieredBlocks"]


@dataclass(frozen=True, slots=True)
class Place:
    """The fastest tier that has a block, and its bytes there by level, finest first."""

    tier: Tier
    sizes: Mapping[str, int]


class TieredBlocks:
    """The blocks of an engine over all its tiers. See `BlockLookup` for the contract."""

    def __init__(
        self, memory: MemoryBlocks, disk: DiskBlocks, remote: RemoteBlocks | None = None
    ) -> None:
        self.memory = memory
        self.disk = disk
        self.remote = remote
        self.uploads = Uploads(disk, remote) if remote is not None else None
        self.promotion = Promotion(disk)
        self.meter = disk.meter
        if remote is not None:
            remote.asked = lambda seconds: self.meter.timed("remote", 0, seconds)

    def expect(self, namespace: str, form: BlockForm) -> None:
        """Say what the blocks of a namespace look like; others are not used, whoever wrote them."""
        self.disk.forms[namespace] = form
        if self.remote is not None:
            self.remote.forms[namespace] = form

    def has(self, block: str) -> bool:
        if self.memory.has(block) or self.disk.has(block):
            return True
        return self.remote is not None and self.remote.has(block)

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
        sizes = self.remote.sizes(block) if self.remote is not None else {}
        return Place("remote", sizes) if sizes else None

    def farthest(self, blocks: Sequence[str]) -> Tier:
        """Return the slowest tier that any of these blocks would come from."""
        away = [b for b in blocks if not self.memory.has(b)]
        if not away:
            return "memory"
        return "disk" if all(self.disk.has(b) for b in away) else "remote"

    def fetch(self, block: str, level: str | None = None) -> KVBlock | None:
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
            # What is damaged here may be sound there.
            return self._from_remote(block, level or (row.level if row is not None else None))
        self.memory.put(row.parent, row.token_ids, found)
        return found

    def _from_remote(self, block: str, level: str | None) -> KVBlock | None:
        """Return a block of the remote; it comes into memory now, and to disk later."""
        started = time.perf_counter()
        received = self.remote.fetch(block, level) if self.remote is not None else None
        if received is None or self.remote is None:
            return None
        stored, raw = received.stored, received.raw
        self.meter.timed("remote", len(raw), time.perf_counter() - started)
        try:
            began = time.perf_counter()
            found = stored.block
            self.meter.decoded(stored.level, found.num_bytes, time.perf_counter() - began)
        except CacheError as error:
            self.remote.refuse(block, stored.level, error)
            return None
        self.memory.put(stored.parent, stored.token_ids, found)
        self.promotion.offer(received)
        return found

    def in_turn(self, blocks: Sequence[str]) -> Generator[KVBlock | None]:
        """Yield what `get` returns, in order; what is on disk is read while the last is used."""
        if all(self.memory.has(b) for b in blocks):
            yield from map(self.get, blocks)
            return
        ahead: deque[Future[KVBlock | None]] = deque()
        readers = FAR_READERS if self.farthest(blocks) == "remote" else 1
        with ThreadPoolExecutor(readers, thread_name_prefix="centroidkv-read") as reader:
            for block in blocks:
                ahead.append(reader.submit(self.get, block))
                if len(ahead) > readers + 1:
                    yield ahead.popleft().result()
            while ahead:
                yield ahead.popleft().result()

    def match(self, namespace: str, token_ids: Sequence[int]) -> Match:
        """Find the longest stored prefix of a prompt; the remote is asked for what is not here."""
        found = longest_prefix(self, namespace, token_ids)
        if self._is_further_away(found, namespace, token_ids):
            return longest_prefix(self, namespace, token_ids)
        return found

    def _is_further_away(self, found: Match, namespace: str, token_ids: Sequence[int]) -> bool:
        """Tell whether the remote has full blocks behind a match, if enough could be gained.

        Tails are not looked for: they are known by their tokens, and a remote only knows ids.
        """
        if self.remote is None or self.uploads is None:
            return False
        end = (len(token_ids) - 1) // BLOCK_TOKENS * BLOCK_TOKENS
        if end - found.num_tokens < self.remote.settings.min_tokens:
            return False
        start = found.num_tokens // BLOCK_TOKENS * BLOCK_TOKENS
        ids = [link.id for link in chain(namespace, token_ids[:end], start)]
        return self.remote.look_for(ids, self.uploads.levels(namespace)) > 0

    def prefetch(self, last_block: str) -> None:
        """Bring a chain of blocks into memory, first block first, as far as the budget goes."""
        room = self.memory.budget_bytes
        for row in self.disk.manifest.chain(last_block):
            room -= row.num_bytes  # of lossy KV less than it takes in memory, and then the last
            if room < 0:
                return
            block = self.get(row.id)
            if block is not None:
                room -= max(0, block.num_bytes - row.num_bytes)

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
            if self.uploads is not None and last is not None:
                self.uploads.send(last, piece.block)
            self._settle(piece)
        return last

    def _settle(self, piece: Piece) -> None:
        """Let memory hold what the disk would give, so that no answer depends on the tier."""
        own = block_id(piece.parent, piece.token_ids)
        if self.memory.has(own) and self.disk.is_lossy(own):
            kept = self.disk.get(own)
            if kept is not None:
                self.memory.replace(own, kept)

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
