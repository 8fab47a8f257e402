"""Whose KV there is, since when, and removing it from every tier: for export, forgetting and ages.

A block's id tells nothing of its tenant, so the manifest notes which namespaces are whose, and a
namespace that was derived from another (passages behind a head and its run-up) who its owner
is. Knows no text.
"""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

from centroidkv.errors import CacheError
from centroidkv.kv.blocks import is_block_id, is_root, namespace_id
from centroidkv.kv.codec import load_block
from centroidkv.kv.manifest import Manifest
from centroidkv.kv.owners import NOBODY, unowned
from centroidkv.kv.remote_budget import block_of
from centroidkv.kv.tiers import TieredBlocks
from centroidkv.sqlite_scrubbing import erasing, scrub

__all__ = ["Holdings", "Node", "owner_of"]

# A clock that was set back: what seems to be of later than this is taken for new.
AHEAD_S = 120


@dataclass(frozen=True, slots=True)
class Node:
    """A block wherever it is: `tiers` are `memory`, `disk`, `file` (not indexed) or `remote`.

    One that cannot be read has no tokens and no namespace.
    """

    id: str
    parent: str
    namespace: str
    token_ids: tuple[int, ...]
    tiers: tuple[str, ...]
    used_s: float = 0.0


def owner_of(tenant: str) -> str:
    """Return what the manifest calls a tenant."""
    return namespace_id("owner", tenant)


class Holdings:
    """The blocks that one owner has in all tiers, whatever model they are of."""

    def __init__(self, blocks: TieredBlocks, owner: str) -> None:
        self._blocks = blocks
        self._owner = owner

    @classmethod
    def of_tenant(cls, blocks: TieredBlocks, tenant: str) -> "Holdings":
        """Return what a tenant has, by the name that a server gave it."""
        return cls(blocks, owner_of(tenant))

    @property
    def _manifest(self) -> Manifest:
        return self._blocks.disk.manifest

    def namespaces(self) -> dict[str, str]:
        """Return the owner's namespaces, each with the fingerprint of its model."""
        if self._owner == NOBODY:
            return dict.fromkeys(unowned(self._manifest), "")
        query = """WITH RECURSIVE own (namespace, model) AS (
            SELECT namespace, model FROM sound_owners WHERE owner = ?
            UNION SELECT o.namespace, COALESCE(NULLIF(o.model, ''), own.model)
                FROM sound_owners AS o JOIN own ON o.owner = own.namespace)
            SELECT namespace, model FROM own"""
        return {str(n): str(m) for n, m in self._manifest._rows(query, self._owner)}

    def derived(self) -> set[str]:
        """Return those of the owner's namespaces that belong to another of them."""
        own = self.namespaces()
        rows = self._manifest._rows("SELECT namespace, owner FROM sound_owners")
        return {str(n) for n, owner in rows if owner in own}

    # finding

    def nodes(self, *, with_remote: bool) -> dict[str, Node]:
        """Return every block of the owner by id; reads each entry of a remote that is not here.

        Raises:
            OSError: The remote does not tell what it holds.
        """
        own = self.namespaces()
        found = self._on_disk(own)
        self._add_memory(found, own)
        if not self._blocks.disk.read_only:
            self._add(found, self._loose_files(found), own)
        if with_remote and self._blocks.remote is not None:
            self._add_remote(found, own)
        return found

    def _on_disk(self, own: Mapping[str, str]) -> dict[str, Node]:
        stamps = {str(b): s for b, s in self._manifest._rows("SELECT id, stored_s FROM blocks")}
        return {
            row.id: Node(
                row.id,
                row.parent,
                row.namespace,
                row.token_ids,
                ("disk",),
                float(str(stamps.get(row.id) or 0)),
            )
            for namespace in own
            for row in self._manifest.rows("namespace = ?", namespace)
        }

    def _add_memory(self, found: dict[str, Node], own: Mapping[str, str]) -> None:
        memory, used = self._blocks.memory, self._blocks.memory.used_s()
        for block, used_s in used.items():
            piece = memory.piece(block)
            namespace = self._namespace_of(block, found)
            # Where nothing tells whose it is, it may be this owner's.
            if piece is None or (namespace and namespace not in own):
                continue
            node = Node(block, piece.parent, namespace, piece.token_ids, ("memory",), used_s)
            self._add(found, [node], own)

    def _namespace_of(self, block: str, found: Mapping[str, Node]) -> str:
        """Follow a block in memory to the root of its sequence; "" where that is not known."""
        while not is_root(block):
            known = found.get(block)
            if known is not None:
                return known.namespace
            row = self._manifest.get(block)
            if row is not None:
                return row.namespace
            piece = self._blocks.memory.piece(block)
            if piece is None:
                return ""
            block = piece.parent
        return block

    def _add(self, found: dict[str, Node], nodes: Iterable[Node], own: Mapping[str, str]) -> None:
        for node in nodes:
            if node.namespace and node.namespace not in own:
                continue
            known = found.setdefault(node.id, node)
            if known is not node:
                tiers, used_s = known.tiers + node.tiers, max(known.used_s, node.used_s)
                found[node.id] = replace(known, tiers=tiers, used_s=used_s)

    def _loose_files(self, found: Mapping[str, Node]) -> Iterator[Node]:
        """Yield blocks whose file is there and whose row is not, as a kill may leave them.

        Of a damaged one nothing tells whose it is, so it may be this owner's.
        """
        for path in list(self._blocks.disk.files()):
            if path.stem in found or self._manifest.get(path.stem) is not None:
                continue
            if not is_block_id(path.stem):
                continue
            used_s = path.lstat().st_mtime
            try:
                s = load_block(path, self._blocks.disk.vault)
            except (CacheError, OSError):
                yield Node(path.stem, "", "", (), ("file",), used_s)
            else:
                yield Node(path.stem, s.parent, s.namespace, s.token_ids, ("file",), used_s)

    def _add_remote(self, found: dict[str, Node], own: Mapping[str, str]) -> None:
        """Add what is on the remote alone; of what cannot be read nothing tells whose it is.

        Raises:
            OSError: The remote does not tell what it holds, or does not give all of it.
        """
        remote = self._blocks.remote
        assert remote is not None
        withheld = 0
        for name in self._listed():
            block, level = block_of(name), name.rpartition(".")[2]
            known = found.get(block)
            if known is not None:
                if "remote" not in known.tiers:
                    found[block] = replace(known, tiers=(*known.tiers, "remote"))
                continue
            if self._manifest.has(block):
                continue  # another owner's
            try:
                s = remote.inspect(block, level)
            except CacheError:
                self._add(found, [Node(block, "", "", (), ("remote",))], own)
            except OSError:
                withheld += 1
            else:
                if s is not None:
                    node = Node(s.id, s.parent, s.namespace, s.token_ids, ("remote",))
                    self._add(found, [node], own)
        if withheld:
            raise OSError(f"the remote does not give {withheld} of its entries")

    def _listed(self) -> list[str]:
        remote = self._blocks.remote
        names = remote.names() if remote is not None else []
        if names is None:
            raise OSError("the remote does not say what it holds")
        return names

    # removing

    def erase(self, nodes: Sequence[Node]) -> None:
        """Remove blocks from every tier: remote and files first, so that a kill can be repeated.

        Raises:
            OSError: The remote does not delete, or a file cannot be removed.
        """
        ids = {node.id for node in nodes}
        for block in ids:
            self._blocks.memory.delete(block)
        failed = self._erase_remote(ids) if self._blocks.remote is not None else None
        for block in ids:
            self._blocks.disk.path(block).unlink(missing_ok=True)
        with self._manifest._writing() as db:
            erasing(db)
            rows = [(block,) for block in ids]
            db.executemany("DELETE FROM prefixes WHERE block = ?", rows)
            db.executemany("DELETE FROM blocks WHERE id = ?", rows)
            self._manifest._tokens.forget(ids)
        if failed is not None:
            raise OSError(failed)

    def _erase_remote(self, ids: set[str]) -> str | None:
        remote = self._blocks.remote
        assert remote is not None
        try:
            names = [name for name in self._listed() if block_of(name) in ids]
        except OSError as error:
            return str(error)
        return None if remote.erase(names) else "the remote does not delete what it holds"

    def scrub(self) -> bool:
        """Rewrite the manifest without what was removed; tell whether that could be done."""
        with self._manifest._lock:
            return scrub(self._manifest._db)

    # ages

    def settle_clock(self, now_s: float) -> None:
        """Take what seems to come from after `now_s` for new: the clock was set back."""
        with self._manifest._writing() as db:
            query = "UPDATE blocks SET stored_s = ? WHERE stored_s > ?"
            db.execute(query, (int(now_s), now_s + AHEAD_S))

    def has_older(self, before_s: float) -> bool:
        """Tell whether any block was last used before a time; reads no block."""
        if min(self._blocks.memory.used_s().values(), default=before_s) < before_s:
            return True
        query = "SELECT 1 FROM blocks WHERE namespace = ? AND stored_s < ? LIMIT 1"
        return any(self._manifest._rows(query, n, before_s) for n in self.namespaces())
