"""The disk tier: one file per block, indexed by the manifest, under a byte budget.

A bad, foreign or missing file is set aside, counted, and never served. Reads do not change the
store, so a block survives any number of hits.
"""

import logging
import sqlite3
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

from centroidkv.block_form import BlockForm
from centroidkv.errors import CacheCorrupt, CacheError, CacheFull, CacheMismatch
from centroidkv.files import forbidden, set_aside
from centroidkv.kv.bandwidth import Meter
from centroidkv.kv.blocks import block_id, is_block_id, is_root
from centroidkv.kv.codec import RAW, BlockCoder, StoredBlock, load_block, save_coded
from centroidkv.kv.eviction import Leases, leaves_to_evict
from centroidkv.kv.manifest import BlockRow, Manifest
from centroidkv.sqlite_checks import is_damage
from centroidkv.types import KVBlock, common_prefix
from centroidkv.vault import IN_THE_CLEAR, Vault

_log = logging.getLogger("centroidkv")

__all__ = ["DiskBlocks"]


class DiskBlocks:
    """Blocks on disk. See `BlockStore` for the contract."""

    def __init__(
        self,
        folder: Path,
        *,
        budget_bytes: int,
        read_only: bool = False,
        policy: str = "lru",
        vault: Vault = IN_THE_CLEAR,
    ) -> None:
        self.folder = folder
        self.budget_bytes = budget_bytes
        self.read_only = read_only
        self.vault = vault
        self._policy = policy
        self.coders: dict[str, BlockCoder] = {}  # by namespace: how new blocks are written
        self.forms: dict[str, BlockForm] = {}  # by namespace: what blocks have to look like
        self.leaving: Callable[[Sequence[str]], None] | None = None  # told before blocks go
        self._has_told = False
        self.leases = Leases()
        self.meter = Meter()
        self._blocks = folder / "blocks"
        self._quarantine = folder / "quarantine"
        self.manifest = self._open_manifest()

    def close(self) -> None:
        self.manifest.close()

    def _open_manifest(self) -> Manifest:
        """Open the manifest; a damaged one is set aside and made again from the block files."""
        path = self.folder / "manifest.sqlite"
        try:
            manifest = self._manifest_at(path)
        except sqlite3.DatabaseError as error:
            if not is_damage(error):
                raise
            return self._made_again(path, error)
        if not self.read_only and manifest.is_empty():
            self._index_files(manifest)
        return manifest

    def _manifest_at(self, path: Path) -> Manifest:
        return Manifest(path, policy=self._policy, read_only=self.read_only, vault=self.vault)

    def _made_again(self, path: Path, error: Exception) -> Manifest:
        _log.warning("%s is damaged (%s); it is made again from the block files", path, error)
        if self.read_only:
            manifest = Manifest(Path(":memory:"), vault=self.vault)
        else:
            self.set_aside(path)
            manifest = self._manifest_at(path)
        self._index_files(manifest)
        return manifest

    def _index_files(self, manifest: Manifest) -> None:
        for path in self.files():
            try:
                stored = load_block(path, self.vault)
                if stored.id != path.stem or stored.id != block_id(stored.parent, stored.token_ids):
                    raise CacheMismatch(str(path), expected=path.stem, found=stored.id)
            except PermissionError:
                self._tell_forbidden(path)
                continue
            except (CacheError, OSError) as error:
                self._report(path, error, manifest)
                continue
            manifest.add(_row(stored, path.stat().st_size))
        manifest.settle_depths()

    def files(self) -> Iterator[Path]:
        """Yield every block file that is there, known to the manifest or not."""
        yield from sorted(self._blocks.glob("??/*.safetensors"))

    def path(self, block: str) -> Path:
        """Return where a block's file is.

        Raises:
            CacheMismatch: It is no id of a block, and must not become a path.
        """
        if not is_block_id(block):
            raise CacheMismatch("a block's id", expected="64 hexadecimal digits", found=block[:80])
        return self._blocks / block[:2] / f"{block}.safetensors"

    # reading

    def has(self, block: str) -> bool:
        return self.manifest.has(block)

    def neighbours(
        self, parent: str, token_ids: Sequence[int]
    ) -> list[tuple[str, tuple[int, ...]]]:
        return self.manifest.neighbours(parent, token_ids)

    def get(self, block: str) -> KVBlock | None:
        row = self.manifest.get(block)
        return self.read(row) if row is not None else None

    def read(self, row: BlockRow) -> KVBlock | None:
        """Return the block of a row, as `get` does."""
        path = self.path(row.id)
        try:
            began = time.perf_counter()
            stored = self.verified(row, path)
            read = time.perf_counter()
            found = stored.block
            self.meter.timed("disk", row.num_bytes, read - began)
            self.meter.decoded(stored.level, found.num_bytes, time.perf_counter() - read)
            return found
        except PermissionError:
            self._tell_forbidden(path)
            return None
        except (CacheError, OSError) as error:
            self._give_up(row, path, error)
            return None

    def verified(self, row: BlockRow, path: Path) -> StoredBlock:
        """Read a block and hold it against its row and its id.

        Raises:
            CacheError: The file is damaged, foreign or not what its row says.
            OSError: The file cannot be read.
        """
        stored = load_block(path, self.vault)
        if (stored.id, stored.parent) != (row.id, row.parent):
            raise CacheMismatch(str(path), expected=row.id, found=stored.id)
        if stored.id != block_id(stored.parent, stored.token_ids):
            raise CacheCorrupt(path, "the id does not follow from its tokens")
        if stored.token_ids != row.token_ids:
            raise CacheMismatch(
                f"tokens of {path}", expected="those of the manifest", found="others"
            )
        form = self.forms.get(row.namespace)
        if form is not None:
            stored.require(form)
        return stored

    def _tell_forbidden(self, path: Path) -> None:
        """Say whose a block file is that may not be read: once, since others will be alike."""
        if not self._has_told:
            self._has_told = True
            _log.warning("block ignored: %s", forbidden(path))

    def _give_up(self, row: BlockRow, path: Path, error: Exception) -> None:
        """Set a bad block aside, unless another process evicted it or wrote it anew meanwhile."""
        if self.read_only:
            self._report(path, error, self.manifest)
            return
        with self.manifest.alone():
            if not self.manifest.has(row.id):
                return  # evicted between the look into the manifest and the file
            try:
                self.verified(row, path)
            except (CacheError, OSError) as still:
                self._report(path, still, self.manifest)
                self.manifest.remove([row.id])

    def _report(self, path: Path, error: Exception, manifest: Manifest) -> None:
        _log.warning("block ignored: %s", error)
        if self.read_only:
            return
        is_foreign = isinstance(error, CacheMismatch)
        manifest.count(["damaged_blocks", *(["foreign_blocks"] if is_foreign else [])])
        try:
            self.set_aside(path)
        except OSError as failed:  # a full disk, say: whoever asked for the block goes on
            _log.warning("%s could not be set aside: %s", path, failed)

    def drop(self, block: str) -> None:
        """Forget a block that cannot be used; its file, if any, is set aside."""
        self.set_aside(self.path(block))
        self.manifest.remove([block])

    def set_aside(self, path: Path) -> None:
        """Move a damaged file out of the way, keeping it."""
        set_aside(path, self._quarantine)

    # writing

    def put(self, parent: str, token_ids: Sequence[int], block: KVBlock) -> str | None:
        """Store a block; see `BlockStore.put`.

        Raises:
            CacheFull: The block alone is larger than the budget.
            OSError: The disk is full or read-only.
        """
        if not is_root(parent) and not self.has(parent):
            # Evicted meanwhile: behind a block that is not there nothing can be found.
            self.manifest.count(["orphaned_blocks"])
            return None
        own, old = self.placed(parent, token_ids)
        if own is None:
            return old
        namespace = self._namespace_of(parent)
        ids, coded = (own, parent, namespace), self.coders.get(namespace, RAW).encode(block)
        with self.leases.hold([parent]):
            self.make_room(coded.num_bytes + 4096)
            size = save_coded(self.path(own), coded, ids=ids, token_ids=token_ids, vault=self.vault)
            row = BlockRow(*ids, tuple(token_ids), size, coded.level)
            if not self._enter(row, self.path(own)):
                self.manifest.count(["orphaned_blocks"])
                return None
        self._supersede(old, own)
        return own

    def _enter(self, row: BlockRow, path: Path) -> bool:
        """Note a block whose file is written; where there is no place for it, take the file back.

        Others may have filled the room that was made, evicted the parent, or evicted this very
        block as another process had written it, and its file with it.
        """
        while True:
            with self.manifest.alone():
                if self.manifest.has(row.id):
                    return True
                if not path.exists():
                    return False
                is_lost = not is_root(row.parent) and not self.has(row.parent)
                if not is_lost and self.manifest.disk_bytes() + row.num_bytes <= self.budget_bytes:
                    self.manifest.add(row)
                    return True
                if is_lost:
                    path.unlink()
                    return False
            try:
                self.make_room(row.num_bytes)
            except CacheFull:
                self._take_back(row, path)
                raise

    def _take_back(self, row: BlockRow, path: Path) -> None:
        with self.manifest.alone():
            if not self.manifest.has(row.id):
                path.unlink(missing_ok=True)

    def adopt(self, stored: StoredBlock, raw: bytes) -> bool:
        """Keep a verified block that came from elsewhere, as it came; tell whether it is kept.

        Raises:
            CacheFull: The block alone is larger than the budget.
            OSError: The disk is full or read-only.
        """
        if not self.takes(stored) or stored.namespace != self._namespace_of(stored.parent):
            return False
        if not is_root(stored.parent) and not self.has(stored.parent):
            return False
        own, old = self.placed(stored.parent, stored.token_ids)
        if own is None:
            return False
        with self.leases.hold([stored.parent]):
            self.make_room(len(raw))
            size = self.vault.write(self.path(own), raw)
            if not self._enter(_row(stored, size), self.path(own)):
                return False
            self.manifest.sent([own])
        self._supersede(old, own)
        return True

    def takes(self, stored: StoredBlock) -> bool:
        """Tell whether a block is of the level that is kept here; what no level holds is raw."""
        level = self.coders.get(stored.namespace, RAW).level
        return not self.read_only and stored.level in (level, RAW.level)

    def _supersede(self, old: str | None, new: str) -> None:
        if old is not None:
            with self.manifest.alone():
                self.manifest.replace_tail(old, new)
                self.path(old).unlink(missing_ok=True)

    def placed(self, parent: str, token_ids: Sequence[int]) -> tuple[str | None, str | None]:
        """Decide where tokens go: (new id, tail it supersedes) or (None, id that covers them)."""
        superseded = None
        for child, tokens in self.neighbours(parent, token_ids):
            shared = common_prefix(tokens, token_ids)
            if shared == len(token_ids):
                return None, child
            if shared == len(tokens):
                superseded = child
        return block_id(parent, token_ids), superseded

    def is_lossy(self, block: str) -> bool:
        """Tell whether a block is here, at a coded level."""
        row = self.manifest.get(block)
        return row is not None and row.level != RAW.level

    def _namespace_of(self, parent: str) -> str:
        row = self.manifest.get(parent)
        return row.namespace if row is not None else parent

    def make_room(self, needed_bytes: int) -> None:
        """Evict until `needed_bytes` more fit into the budget.

        Raises:
            CacheFull: All that is left is in use or leads to something in use.
        """
        if needed_bytes > self.budget_bytes:
            raise CacheFull(needed_bytes=needed_bytes, budget_bytes=self.budget_bytes)
        while (excess := self.manifest.disk_bytes() + needed_bytes - self.budget_bytes) > 0:
            leaves = leaves_to_evict(self.manifest, excess, self.leases)
            if not leaves:
                raise CacheFull(needed_bytes=needed_bytes, budget_bytes=self.budget_bytes)
            if self.leaving is not None:
                self.leaving(leaves)
            for leaf in leaves:
                self._evict(leaf)

    def _evict(self, leaf: str) -> None:
        """Remove a block, row and file in one: nobody finds one of them without the other."""
        with self.manifest.alone():
            if self.manifest.is_leaf(leaf):  # or others evicted it, or wrote behind it, meanwhile
                self.manifest.evict([leaf])
                self.manifest.count(["evicted_blocks"])
                self.path(leaf).unlink(missing_ok=True)


def _row(stored: StoredBlock, num_bytes: int) -> BlockRow:
    return BlockRow(
        stored.id, stored.parent, stored.namespace, stored.token_ids, num_bytes, stored.level
    )
