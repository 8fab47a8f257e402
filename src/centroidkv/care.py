"""Care of a store that an engine has open: looking at it, checking it, what must stay in it.

The part of `Engine` that answers no question. Knows no request.
"""

import time
from abc import ABC, abstractmethod
from typing import Any

from centroidkv.errors import ConfigError
from centroidkv.maintenance import CheckReport, StoreStats, check_store, store_stats
from centroidkv.precision.codec_report import CodecReport
from centroidkv.precision.level_trial import measure_levels
from centroidkv.privacy.forgetting import Privacy
from centroidkv.privacy.report import Export, ForgetReport
from centroidkv.privacy.wanted import Wanted, seconds
from centroidkv.protocols import CausalModel
from centroidkv.routing.router import Router
from centroidkv.serving.learning import Learner
from centroidkv.store import Store
from centroidkv.tenant_view import own_check, own_stats
from centroidkv.versions.pinning import Pins

__all__ = ["Care"]


class Care(ABC):
    """What an engine offers to those who run it."""

    store: Store
    model: CausalModel
    router: Router
    _privacy: Privacy
    _learner: Learner

    @property
    def pins(self) -> Pins:
        """Clusters whose KV is not evicted: `pins.add(3)`, `pins.remove(3)`, `pins.all()`."""
        return Pins(self.store, self.router)

    def stats(self) -> StoreStats:
        """Return counts, sizes and counters: this tenant's, and of what all tenants share."""
        self._require_open()
        self.flush()
        own = (self._learner.namespace, self._learner.versions.namespace)
        found = store_stats(self.store, self.router)
        return own_stats(found, self.store, self.router.plan, own)

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
        """Verify every block, manifest row, plan and centroid; with `repair`, mend what can be.

        The engine of a further tenant tells of its own and of what is shared alone.
        """
        self._require_open()
        self.flush()
        found = check_store(self.store, repair=repair, router=self.router)
        return own_check(found, self.store, self._learner.versions.namespace)

    def codec_report(self, prompts: Any = None, **options: Any) -> CodecReport:
        """Measure what each KV level costs this model; keep and return it. See `measure_levels`."""
        self._require_open()
        return measure_levels(self.store, self.model, self.router.plan, prompts, **options)

    def export(self, *, question: str | None = None, passage: str | None = None) -> Export:
        """Return what is held about a question, about a passage (id or text), or at all.

        Of this tenant, in every place: questions seen, answers, plans, KV with its text, remote.

        Raises:
            ConfigError: Both were given, or a text is blank.
        """
        self._require_open()
        is_all = question is None and passage is None
        wanted = Wanted.of(question=question, passage=passage, everything=is_all)
        return self._privacy.export(wanted)

    def forget(
        self,
        *,
        question: str | None = None,
        passage: str | None = None,
        older_than_s: float | None = None,
        everything: bool = False,
    ) -> ForgetReport:
        """Remove from every place what holds a question or a passage, what is old, or everything.

        Of this tenant alone. Places are searched again afterwards: `report.is_proven`. What is
        broken off, or could not be removed, is gone on with when the store is opened next.

        Args:
            question: Any spelling that differs in case and spacing alone is the same.
            passage: Its id or its text.
            older_than_s: Whatever was not stored or asked again for so many seconds.
            everything: All that this tenant has in the store.

        Raises:
            ConfigError: Not exactly one of these was given.
            StoreError: The store is read-only.
        """
        self._require_open()
        self.store.require_writable("forget")
        before_s = None if older_than_s is None else time.time() - seconds(older_than_s)
        wanted = Wanted.of(
            question=question, passage=passage, before_s=before_s, everything=everything
        )
        return self._privacy.forget(wanted)

    def is_personal(self, *texts: str) -> bool:
        """Tell whether the setting `redact` would change any of these: then none is stored."""
        return any(map(self._learner.redactor.is_personal, texts))

    def _masked(self, text: str) -> str:
        return self._learner.redactor.masked(text)

    @abstractmethod
    def flush(self) -> None:
        """Wait until everything learnt so far is on disk."""

    @abstractmethod
    def _require_open(self) -> None: ...
