"""Loading a cluster's KV into memory while the user's retriever is still searching."""

import contextlib
import logging
import sqlite3
import threading
from concurrent.futures import ThreadPoolExecutor

from centroidkv.error_kinds import kind_of
from centroidkv.kv.tiers import TieredBlocks

_log = logging.getLogger("centroidkv")

__all__ = ["Prefetcher"]


class Prefetcher:
    """One thread that brings clusters' blocks into the memory tier.

    A cluster waits once, so no more wait than there are clusters in plans.
    """

    def __init__(self, blocks: TieredBlocks) -> None:
        self._blocks = blocks
        self._lock = threading.Lock()
        self._waiting: set[tuple[str, str, int]] = set()
        self._threads = ThreadPoolExecutor(1, thread_name_prefix="centroidkv-prefetch")

    def begin(self, namespace: str, plan_id: str, cluster: int) -> None:
        """Start loading what a cluster has in a KV namespace, under any head."""
        wanted = (namespace, plan_id, cluster)
        with self._lock, contextlib.suppress(RuntimeError):  # closed meanwhile
            if wanted not in self._waiting:
                self._waiting.add(wanted)
                self._threads.submit(self._load_next, wanted)

    def _load_next(self, wanted: tuple[str, str, int]) -> None:
        with self._lock:
            self._waiting.discard(wanted)
        self.load(*wanted)

    def load(self, namespace: str, plan_id: str, cluster: int) -> None:
        """Load what a cluster has in a KV namespace, under any head, before returning."""
        try:
            for row in self._blocks.disk.manifest.prefixes(plan_id, cluster):
                if row.namespace == namespace:
                    self._blocks.prefetch(row.block)
        except Exception as error:  # noqa: BLE001
            # A prefetch only saves time; the request itself will meet and report the fault.
            _log.warning("a cluster was not loaded ahead: %s", kind_of(error))
            self._count()

    def _count(self) -> None:
        try:
            if not self._blocks.disk.read_only:
                self._blocks.disk.manifest.count(["failed_prefetches"])
        except sqlite3.Error:
            _log.debug("the failed prefetch could not be counted", exc_info=True)

    def close(self) -> None:
        """Finish the load under way and drop the others."""
        self._threads.shutdown(wait=True, cancel_futures=True)
