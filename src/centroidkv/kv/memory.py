"""The memory tier: blocks by id, least recently used first out, under a byte budget."""

import bisect
import threading
from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass

from centroidkv.kv.blocks import Piece, block_id, pack, unpack
from centroidkv.types import KVBlock

__all__ = ["MemoryBlocks"]


@dataclass(frozen=True, slots=True)
class _Entry:
    parent: str
    tokens: bytes
    block: KVBlock


class MemoryBlocks:
    """Blocks in memory. See `BlockStore` for the contract. Safe for many threads."""

    def __init__(self, *, budget_bytes: int) -> None:
        self.budget_bytes = budget_bytes
        self.num_bytes = 0
        self._entries: OrderedDict[str, _Entry] = OrderedDict()
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
            self._entries.move_to_end(block)
            return entry.block

    def peek(self, block: str) -> KVBlock | None:
        """Return a block without counting that as a use."""
        entry = self._entries.get(block)
        return entry.block if entry else None

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
            if new not in self._entries:
                self._entries[new] = _Entry(parent, tokens, block)
                bisect.insort(self._children.setdefault(parent, []), (tokens, new))
                self.num_bytes += block.num_bytes
            self._entries.move_to_end(new)
            while self.num_bytes > self.budget_bytes:
                self.delete(next(iter(self._entries)))
        return new

    def replace(self, block: str, by: KVBlock) -> None:
        """Hold other KV of a block's tokens from now on, if the block is here."""
        with self._lock:
            entry = self._entries.get(block)
            if entry is not None:
                self.num_bytes += by.num_bytes - entry.block.num_bytes
                self._entries[block] = _Entry(entry.parent, entry.tokens, by)

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
