"""Token ids in a column of the manifest, in the clear or sealed, and which of them come next.

In the clear SQLite finds neighbours by an index, since byte order is token order. Sealed ones have
no order, so the children of a block are all looked at; what they were does not change with an id.
"""

from collections.abc import Callable, Sequence

from centroidkv.errors import CacheCorrupt
from centroidkv.kv.blocks import pack, unpack
from centroidkv.kv.manifest_rows import is_child
from centroidkv.vault import Vault

NAME = "blocks.tokens"
MOST_KNOWN = 100_000

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
        self._known: dict[str, tuple[int, ...]] = {}

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
        before: tuple[tuple[int, ...], str] | None = None
        after: tuple[tuple[int, ...], str] | None = None
        for block, value in self._query("SELECT id, tokens FROM blocks WHERE parent = ?", parent):
            own = self._of(str(block), parent, value)
            if not own:
                continue
            if own < token_ids:
                before = max(before or (own, str(block)), (own, str(block)))
            else:
                after = min(after or (own, str(block)), (own, str(block)))
        return [(block, own) for own, block in filter(None, (before, after))]

    def _of(self, block: str, parent: str, value: object) -> tuple[int, ...]:
        """Return a block's tokens, () if they are damaged."""
        known = self._known.get(block)
        if known is None:
            own = _tokens(self.take(value))
            known = own if is_child(block, parent, own) else ()
            if known:
                if len(self._known) >= MOST_KNOWN:
                    self._known.clear()
                self._known[block] = known
        return known


def _tokens(value: object) -> tuple[int, ...]:
    return unpack(value) if isinstance(value, bytes) and len(value) % 4 == 0 else ()
