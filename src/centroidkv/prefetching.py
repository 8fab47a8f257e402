"""Loading a cluster's KV into memory while the user's retriever is still searching."""

from concurrent.futures import ThreadPoolExecutor

from centroidkv.learning import Learner
from centroidkv.store import Store

__all__ = ["Prefetcher"]


class Prefetcher:
    """One thread that brings clusters' blocks into the memory tier."""

    def __init__(self, store: Store, learner: Learner) -> None:
        self._blocks = store.blocks
        self._learner = learner
        self._threads = ThreadPoolExecutor(1, thread_name_prefix="centroidkv-prefetch")

    def begin(self, plan_id: str, cluster: int) -> None:
        """Start loading what a cluster has for this model, under any head."""
        self._threads.submit(self._load, plan_id, cluster)

    def _load(self, plan_id: str, cluster: int) -> None:
        try:
            for row in self._blocks.disk.manifest.prefixes(plan_id, cluster):
                if row.namespace == self._learner.namespace:
                    self._blocks.prefetch(row.block)
        except Exception as error:  # noqa: BLE001
            # A prefetch only saves time; the request itself will meet and report the fault.
            self._learner.fault("failed_prefetches", error)

    def close(self) -> None:
        """Finish the load under way and drop the others."""
        self._threads.shutdown(wait=True, cancel_futures=True)
