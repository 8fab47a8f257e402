"""Keeping a plan up with what changes: refit to the questions, refresh to the passages.

Puts together what both need of an engine's parts: a way to fill a plan before it serves.
"""

from collections.abc import Collection, Iterable
from dataclasses import replace
from typing import Any

from centroidkv.policies import Policies
from centroidkv.preparing.refit import RefitReport, Refitter, WarmPlan
from centroidkv.preparing.refreshing import Refresher, RefreshReport
from centroidkv.preparing.warm import Warmer, WarmReport
from centroidkv.progress import no_progress, progress_bar
from centroidkv.protocols import CausalModel, Progress
from centroidkv.retrieval import as_invoke
from centroidkv.routing.plan import Plan
from centroidkv.serving.learning import Learner

_NAMES = ("invoke", "query", "chat")

__all__ = ["Upkeep"]


class Upkeep:
    """Makes the next plan versions of one engine."""

    def __init__(
        self,
        learner: Learner,
        policies: Policies,
        model: CausalModel,
    ) -> None:
        self._learner = learner
        self._store = learner.store
        self._representatives = policies.representatives
        self._approximating = policies.representative
        self._model = model

    def refit(
        self,
        invoke: Any = None,
        *,
        retriever: Any = None,
        since_days: float | None = None,
        share: float | None = None,
        show_progress: bool = False,
        **settings: Any,
    ) -> RefitReport:
        """Make the next plan version from the questions asked, warm it, and switch to it.

        The old one serves until then. Interrupted and called again, it goes on.

        Args:
            invoke: The chain to warm with, as for `Engine.warm`; without one nothing is warmed.
            retriever: Asked anew for every question; else what was found at the time counts.
            since_days: Leave out questions that were not asked for so long, but for those built.
            share: Instead of switching, let the new version serve this share of the questions.
            show_progress: Draw progress bars.
            **settings: See `PlanConfig`; by default those of the plan in force.

        Raises:
            ConfigError: No questions, an unknown setting, or a version is on trial.
            StoreError: The store is read-only.
        """
        self._store.require_writable("refit a plan")
        self._store.writer.flush()  # what was asked last is still on its way into the history
        progress = progress_bar() if show_progress else no_progress
        warm = self._filler(invoke, progress)
        refitter = Refitter(self._learner, self._model, warm, progress)
        named = self._store.config.plan_settings(self._model.context_tokens)
        given = {**named, **settings}
        report = refitter.refit(given, retriever=retriever, since_days=since_days, share=share)
        if share is not None:
            return report
        return replace(report, warm=report.warm or self._represented(invoke, progress))

    def refresh(
        self,
        passages: Iterable[Any],
        invoke: Any = None,
        *,
        source_key: str = "id",
        show_progress: bool = False,
    ) -> RefreshReport:
        """Take over a changed knowledge base; make anew only what depended on it.

        Args:
            passages: All passages as they are now, as a retriever would return them.
            invoke: The chain to warm the changed clusters with, as for `Engine.warm`.
            source_key: The metadata that says which old passage a new one stands for.
            show_progress: Draw a progress bar.

        Raises:
            ConfigError: No plan, nothing of it among the passages, or a version is on trial.
            StoreError: The store is read-only.
        """
        self._store.require_writable("refresh a plan")
        self._store.writer.flush()
        progress = progress_bar() if show_progress else no_progress
        refresher = Refresher(self._learner, self._representatives, self._model.count_tokens)
        warm = self._filler(invoke, progress)
        report = refresher.refresh(passages, warm, source_key=source_key)
        return replace(report, warm=report.warm or self._represented(invoke, progress))

    def _filler(self, invoke: Any, progress: Progress) -> WarmPlan | None:
        if invoke is None or self._store.config.reuse == "representative":
            return None
        run = as_invoke(invoke, _NAMES)

        def fill(plan: Plan, only: Collection[int] | None) -> WarmReport:
            return Warmer(self._store, plan, self._model, self._learner, only).warm(run, progress)

        return fill

    def _represented(self, invoke: Any, progress: Progress) -> WarmReport | None:
        """Ask the representatives of the plan in force; they can be asked once it serves."""
        if invoke is None or self._store.config.reuse != "representative":
            return None
        run = as_invoke(invoke, _NAMES)
        return self._approximating.fill(self._learner.router.plan, run, progress)
