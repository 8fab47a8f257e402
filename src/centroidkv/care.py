"""Care of a store that an engine has open: looking at it, checking it, what must stay in it.

The part of `Engine` that answers no question. Knows no request.
"""

from abc import ABC, abstractmethod
from typing import Any

from centroidkv.codec_report import CodecReport
from centroidkv.errors import ConfigError
from centroidkv.level_trial import measure_levels
from centroidkv.maintenance import CheckReport, StoreStats, check_store, store_stats
from centroidkv.pinning import Pins
from centroidkv.protocols import CausalModel
from centroidkv.routing.router import Router
from centroidkv.store import Store

__all__ = ["Care"]


class Care(ABC):
    """What an engine offers to those who run it."""

    store: Store
    model: CausalModel
    router: Router

    @property
    def pins(self) -> Pins:
        """Clusters whose KV is not evicted: `pins.add(3)`, `pins.remove(3)`, `pins.all()`."""
        return Pins(self.store, self.router)

    def stats(self) -> StoreStats:
        """Return counts, sizes and counters of the store."""
        self._require_open()
        self.flush()
        return store_stats(self.store, self.router)

    def metrics(self) -> str:
        """Return the store's metrics in Prometheus' text format. Waits for nothing.

        Raises:
            ConfigError: They are not collected.
        """
        self._require_open()
        observers = self.store.observers
        if observers is None or observers.metrics is None:
            raise ConfigError("metrics are not collected; open the engine with metrics=True")
        return observers.metrics.text()

    def check(self, *, repair: bool = False) -> CheckReport:
        """Verify every block, manifest row, plan and centroid; with `repair`, mend what can be."""
        self._require_open()
        self.flush()
        return check_store(self.store, repair=repair, router=self.router)

    def codec_report(self, prompts: Any = None, **options: Any) -> CodecReport:
        """Measure what each KV level costs this model; keep and return it. See `measure_levels`."""
        self._require_open()
        return measure_levels(self.store, self.model, self.router.plan, prompts, **options)

    @abstractmethod
    def flush(self) -> None:
        """Wait until everything learnt so far is on disk."""

    @abstractmethod
    def _require_open(self) -> None: ...
