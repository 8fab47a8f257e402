"""Token ids in a column of the manifest, in the clear or sealed, and which of them come next.

In the clear SQLite finds neighbours by an index, since byte order is token order. Sealed ones have
no order, so the children of a block are all looked at; what they were does not change with an id.
"""

import json
from collections.abc import Callable, Iterable, Iterator, Sequence

from centroidkv.errors import CacheCorrupt
from centroidkv.kv.blocks import pack, unpack
from centroidkv.kv.manifest_rows import is_child
from centroidkv.vault import Vault

NAME = "blocks.tokens"
MOST_BYTES = 32 << 20
KEPT_BYTES = 200  # what an entry takes besides its tokens

Query = Callable[..., list[tuple[object, ...]]]

__all__ = ["TokenColumn"]


class TokenColumn:
    """Writes and reads token ids through a vault.

    Args:
        vault: What seals them, or does not.
        query: Runs SQL, with values, and returns all rows.
    """

    def __init__(self, vault: Vault, query: Query) -> None:
        self._vault = vault
        self._query = query
        # Packed, by id: what a block holds never changes.
        self._known: dict[str, bytes] = {}
        self._known_bytes = 0

    def count_in(self, column: str) -> str:
        """Return SQL that counts the tokens of a column."""
        return f"((length({column}) - {self._vault.column_bytes}) / 4)"

    def put(self, token_ids: Sequence[int]) -> bytes:
        """Return how tokens stand in the column."""
        return self._vault.put(pack(token_ids), NAME)

    def take(self, value: object) -> bytes | None:
        """Return the packed tokens that stand in the column; None if they are damaged."""
        try:
            return self._vault.take(value, NAME)
        except CacheCorrupt:
            return None

    def neighbours(
        self, parent: str, token_ids: Sequence[int]
    ) -> list[tuple[str, tuple[int, ...]]]:
        """Return the children just before and just after `token_ids` in token order."""
        if self._vault.is_sealed:
            return self._among_all(parent, tuple(token_ids))
        found: list[tuple[str, tuple[int, ...]]] = []
        for where in ("tokens < ? ORDER BY tokens DESC", "tokens >= ? ORDER BY tokens"):
            query = f"SELECT id, tokens FROM blocks WHERE parent = ? AND {where} LIMIT 1"
            for block, value in self._query(query, parent, pack(token_ids)):
                own = _tokens(value)
                if is_child(str(block), parent, own):
                    found.append((str(block), own))
        return found

    def _among_all(
        self, parent: str, token_ids: tuple[int, ...]
    ) -> list[tuple[str, tuple[int, ...]]]:
        wanted = pack(token_ids)
        before: tuple[bytes, str] | None = None
        after: tuple[bytes, str] | None = None
        for block, own in self._children(parent):
            if own < wanted:
                if before is None or own > before[0]:
                    before = own, block
            elif after is None or own < after[0]:
                after = own, block
        return [(block, unpack(own)) for own, block in filter(None, (before, after))]

    def _children(self, parent: str) -> Iterator[tuple[str, bytes]]:
        """Yield the children of a block with their packed tokens, but for damaged ones."""
        ids = [str(row[0]) for row in self._query("SELECT id FROM blocks WHERE parent = ?", parent)]
        self._learn(parent, ids)
        for block in ids:
            if block in self._known:
                yield block, self._known[block]

    def _learn(self, parent: str, block_ids: Sequence[str]) -> None:
        """Open the tokens of children that are not known yet; of damaged ones nothing is kept."""
        unknown = [block for block in block_ids if block not in self._known]
        if not unknown:
            return
        chosen = "id IN (SELECT value FROM json_each(?))"
        query = f"SELECT id, tokens FROM blocks WHERE {chosen}"
        learnt: dict[str, bytes] = {}
        for block, value in self._query(query, json.dumps(unknown)):
            raw = self.take(value)
            if raw and is_child(str(block), parent, _tokens(raw)):
                learnt[str(block)] = raw
        self._known |= learnt
        self._known_bytes += sum(len(raw) + KEPT_BYTES for raw in learnt.values())
        if self._known_bytes > MOST_BYTES:
            self._known = {b: self._known[b] for b in block_ids if b in self._known}
            self._known_bytes = sum(len(raw) + KEPT_BYTES for raw in self._known.values())

    def forget(self, block_ids: Iterable[str]) -> None:
        """Keep no tokens of blocks that are gone."""
        for block in block_ids:
            raw = self._known.pop(block, None)
            if raw is not None:
                self._known_bytes -= len(raw) + KEPT_BYTES


def _tokens(value: object) -> tuple[int, ...]:
    return unpack(value) if isinstance(value, bytes) and len(value) % 4 == 0 else ()
