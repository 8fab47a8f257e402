"""The memory tier: blocks by id under a byte budget; a policy says which leave first."""

import bisect
import heapq
import threading
import time
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from centroidkv.kv.blocks import Piece, block_id, pack, unpack
from centroidkv.kv.policies import Standing, order_of, worth
from centroidkv.types import KVBlock

__all__ = ["MemoryBlocks"]


@dataclass(slots=True)
class _Entry:
    parent: str
    tokens: bytes
    block: KVBlock
    depth_tokens: int
    standing: Standing
    used_s: float = 0.0

    @property
    def end(self) -> int:
        return self.depth_tokens + self.block.num_tokens


class MemoryBlocks:
    """Blocks in memory. See `BlockStore` for the contract. Safe for many threads."""

    def __init__(self, *, budget_bytes: int, policy: str = "lru") -> None:
        self.budget_bytes = budget_bytes
        self.num_bytes = 0
        self.num_evicted = 0
        self._policy = policy
        self._clock = 0
        self._age = 0.0
        self._kept: frozenset[str] = frozenset()
        self._entries: dict[str, _Entry] = {}
        # Places in the policy's order, those of before a use among them: they are passed over.
        self._turns: list[tuple[tuple[float, ...], str]] = []
        self._children: dict[str, list[tuple[bytes, str]]] = {}
        self._lock = threading.RLock()

    def __len__(self) -> int:
        return len(self._entries)

    def has(self, block: str) -> bool:
        return block in self._entries

    def get(self, block: str) -> KVBlock | None:
        with self._lock:
            entry = self._entries.get(block)
            if entry is None:
                return None
            self._use(block, entry)
            return entry.block

    def peek(self, block: str) -> KVBlock | None:
        """Return a block without counting that as a use."""
        entry = self._entries.get(block)
        return entry.block if entry else None

    def used_s(self) -> dict[str, float]:
        """Return when each block was used last, Unix time."""
        with self._lock:
            return {block: entry.used_s for block, entry in self._entries.items()}

    def piece(self, block: str) -> Piece | None:
        """Return a block with its place in its sequence."""
        with self._lock:
            entry = self._entries.get(block)
        return Piece(entry.parent, unpack(entry.tokens), entry.block) if entry else None

    def neighbours(
        self, parent: str, token_ids: Sequence[int]
    ) -> list[tuple[str, tuple[int, ...]]]:
        with self._lock:
            children = self._children.get(parent, [])
            at = bisect.bisect_left(children, (pack(token_ids), ""))
            return [(child, unpack(raw)) for raw, child in children[max(0, at - 1) : at + 1]]

    def put(self, parent: str, token_ids: Sequence[int], block: KVBlock) -> str | None:
        """Keep a block; None when it is larger than the budget."""
        if block.num_bytes > self.budget_bytes:
            return None
        new, tokens = block_id(parent, token_ids), pack(token_ids)
        with self._lock:
            entry = self._entries.get(new)
            if entry is None:
                above = self._entries.get(parent)
                depth = above.end if above is not None else 0
                entry = _Entry(parent, tokens, block, depth, Standing(0, 0, 0.0))
                self._entries[new] = entry
                bisect.insort(self._children.setdefault(parent, []), (tokens, new))
                self.num_bytes += block.num_bytes
            self._use(new, entry)
            while self.num_bytes > self.budget_bytes:
                self._evict()
        return new

    def replace(self, block: str, by: KVBlock) -> None:
        """Hold other KV of a block's tokens from now on, if the block is here."""
        with self._lock:
            entry = self._entries.get(block)
            if entry is not None:
                self.num_bytes += by.num_bytes - entry.block.num_bytes
                entry.block = by

    def keep(self, blocks: Iterable[str]) -> None:
        """Let these blocks, and no others, stay while there is anything else to evict."""
        with self._lock:
            self._kept = frozenset(blocks)
            self._order_anew()

    def _use(self, block: str, entry: _Entry) -> None:
        self._clock += 1
        entry.used_s = time.time()
        standing = entry.standing
        standing.last_used, standing.uses = self._clock, standing.uses + 1
        standing.worth = worth(
            age=self._age,
            uses=standing.uses,
            depth_tokens=entry.depth_tokens,
            tokens_per_byte=entry.block.num_tokens / max(1, entry.block.num_bytes),
        )
        if len(self._turns) > 4 * len(self._entries) + 64:
            self._order_anew()
        elif block not in self._kept:
            heapq.heappush(self._turns, (order_of(self._policy, standing), block))

    def _order_anew(self) -> None:
        self._turns = [
            (order_of(self._policy, entry.standing), block)
            for block, entry in self._entries.items()
            if block not in self._kept
        ]
        heapq.heapify(self._turns)

    def _evict(self) -> None:
        """Forget the block that is first in the policy's order; kept ones last of all."""
        self.num_evicted += 1
        while self._turns:
            order, block = heapq.heappop(self._turns)
            entry = self._entries.get(block)
            if entry is not None and order == order_of(self._policy, entry.standing):
                self._age = max(self._age, entry.standing.worth)
                self.delete(block)
                return
        self.delete(next(reversed(self._entries)))

    def delete(self, block: str) -> None:
        """Forget a block, if it is here."""
        with self._lock:
            entry = self._entries.pop(block, None)
            if entry is None:
                return
            self.num_bytes -= entry.block.num_bytes
            siblings = self._children[entry.parent]
            siblings.remove((entry.tokens, block))
            if not siblings:
                del self._children[entry.parent]
