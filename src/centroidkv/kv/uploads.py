"""What goes from disk to the remote, and when. Knows neither prompts nor requests.

A block's row says whether the remote has had it, so that nothing is owed twice, or forgotten when
a process ends.
"""

import logging
import sqlite3
from collections.abc import Mapping, Sequence

from centroidkv.errors import CacheError
from centroidkv.kv.codec import MAX_BLOCK_BYTES, RAW, BlockCoder, block_bytes, parse_block
from centroidkv.kv.disk import DiskBlocks
from centroidkv.kv.manifest import BlockRow
from centroidkv.kv.remote import RemoteBlocks
from centroidkv.types import KVBlock

_log = logging.getLogger("centroidkv")

ROWS_A_LOOK = 256

__all__ = ["Uploads"]


class Uploads:
    """Sends full blocks of a disk to a remote, parents first.

    `coders` says by namespace at which levels the remote keeps blocks, finest first; elsewhere it
    keeps what the disk does.
    """

    def __init__(self, disk: DiskBlocks, remote: RemoteBlocks) -> None:
        self.coders: dict[str, tuple[BlockCoder, ...]] = {}
        self._disk = disk
        self._remote = remote
        disk.leaving = self.send_leaving
        if self._is_sent_on:
            self._name_remote()

    def _name_remote(self) -> None:
        try:
            self._disk.manifest.send_to(self._remote.settings.identity)
        except sqlite3.Error as error:
            _log.warning("the manifest could not note which remote blocks are sent to: %s", error)

    def levels(self, namespace: str) -> tuple[str, ...]:
        """Return the levels at which the remote may have blocks of a namespace, finest first."""
        coders = self.coders.get(namespace) or (self._disk.coders.get(namespace, RAW),)
        return tuple(coder.level for coder in coders)

    def send(self, block: str, kv: KVBlock | None = None) -> None:
        """Send a block that has just come to disk, if it is owed and blocks are written through.

        `kv` is what it holds, unless that is the beginning of it alone.
        """
        manifest = self._disk.manifest
        if self._remote.settings.write != "through" or not self._is_sent_on:
            return
        row = manifest.get(block) if manifest.is_owed(block) else None
        if row is not None:
            is_whole = kv is not None and kv.num_tokens == len(row.token_ids)
            self._send([row], {row.id: kv} if kv is not None and is_whole else {})

    def send_owed(self) -> None:
        """Send whatever the remote has not had, until it fails."""
        while self._is_sent_on and (rows := self._disk.manifest.owed(ROWS_A_LOOK)):
            if not self._send(rows):
                return

    def send_leaving(self, block_ids: Sequence[str]) -> None:
        """Send blocks that are about to leave the disk, with what stands before them."""
        manifest = self._disk.manifest
        if self._is_sent_on:
            for block in block_ids:
                owed = [r for r in manifest.chain(block) if manifest.is_owed(r.id)]
                if owed and not self._send(owed):
                    return

    @property
    def _is_sent_on(self) -> bool:
        return not (self._remote.settings.read_only or self._disk.read_only)

    def _send(self, rows: Sequence[BlockRow], known: Mapping[str, KVBlock] | None = None) -> bool:
        """Send rows until one fails; tell whether all went."""
        for row in rows:
            try:
                files = self._files(row, (known or {}).get(row.id))
            except (CacheError, OSError):
                # Whoever reads it next meets and reports the fault.
                self._disk.manifest.sent([row.id])
                continue
            if not self._remote.put(row.id, files, parent=row.parent):
                return False
            self._disk.manifest.sent([row.id])
        return True

    def _files(self, row: BlockRow, kv: KVBlock | None) -> dict[str, bytes]:
        """Return a block's bytes by level, finest first; the disk's own level as it lies there.

        Raises:
            CacheError: The file is damaged.
            OSError: It is gone.
        """
        raw = self._disk.vault.read(self._disk.path(row.id), MAX_BLOCK_BYTES)
        files: dict[str, bytes] = {}
        for coder in self.coders.get(row.namespace) or (BlockCoder(row.level),):
            if coder.level == row.level:
                files[coder.level] = raw
                continue
            kv = kv if kv is not None else parse_block(raw, str(self._disk.path(row.id))).block
            ids = (row.id, row.parent, row.namespace)
            files[coder.level] = block_bytes(kv, ids=ids, token_ids=row.token_ids, coder=coder)
        return files
