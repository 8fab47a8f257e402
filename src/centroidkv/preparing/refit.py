"""Refitting: the next plan version from the questions that came, beside the one that serves.

questions of the history -> fit -> saved, not in force -> warmed -> switched to, or tried

What is interrupted before the switch leaves the old version in force; called again, it goes on
where it stopped.
"""

import time
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import asdict, dataclass, fields, replace
from typing import Any, TypeAlias

import numpy as np

from centroidkv.errors import ConfigError
from centroidkv.plan_config import PlanConfig
from centroidkv.preparing.warm import WarmReport
from centroidkv.protocols import CausalModel, Progress
from centroidkv.retrieval import deep_retrieve
from centroidkv.routing.clustering import nearest_centroid
from centroidkv.routing.history import Asked, Seen
from centroidkv.routing.plan import Plan
from centroidkv.serving.learning import Learner
from centroidkv.types import Passage
from centroidkv.versions.fitting import fit_plan
from centroidkv.versions.in_force import Versions, require_share

DAY_S = 86400.0
COVERED = 4  # how many of a question's passages, the best ones, are looked for in the pins

# Fills the clusters of a plan, all or the given ones.
WarmPlan: TypeAlias = Callable[[Plan, Collection[int] | None], WarmReport]

__all__ = ["RefitReport", "Refitter", "RequestFit", "introduce", "suits"]


@dataclass(frozen=True, slots=True)
class RequestFit:
    """How a plan suits the questions that came in requests, each as often as it came.

    `admitted` is the share of them that a cluster admits, `covered` the share of their best four
    passages that lie in its pins. Of the plan that was fitted to them this is an upper bound.
    """

    admitted: float
    covered: float


@dataclass(frozen=True, slots=True)
class RefitReport:
    """What a refit made. `is_new` is False when the plan in force was the same already."""

    plan_id: str
    version: int
    is_new: bool
    is_in_force: bool
    num_questions: int
    num_new_questions: int
    num_clusters: int
    num_passages: int
    before: RequestFit | None
    after: RequestFit
    warm: WarmReport | None
    seconds: float


class Refitter:
    """Makes the next plan version of one engine. `warm` fills a plan, None for no filling."""

    def __init__(
        self,
        learner: Learner,
        model: CausalModel,
        warm: WarmPlan | None,
        progress: Progress,
    ) -> None:
        self._learner = learner
        self._router = learner.router
        self._versions: Versions = learner.versions
        self._model = model
        self._warm = warm
        self._progress = progress

    def refit(
        self,
        settings: Mapping[str, Any],
        *,
        retriever: Any = None,
        since_days: float | None = None,
        share: float | None = None,
    ) -> RefitReport:
        """Fit the next version to the history, warm it, and switch to it or try it.

        Raises:
            ConfigError: There are no questions, a setting is wrong, or a version is on trial.
        """
        begin = time.perf_counter()
        self._versions.require_no_trial()
        current = self._router.plan
        if share is not None:
            require_share(share)
            if current is None:
                raise ConfigError("a share of the questions needs a plan in force beside it")
        config = PlanConfig.of({**_settings_of(current), **settings})
        asked, passages = self._asked(since_days)
        if retriever is not None:
            asked, passages = self._retrieved(asked, retriever, config.retrieval_depth)
        plan = self._fitted(asked, passages, config)
        is_new = current is None or not plan.is_same_as(current)
        if current is not None and not is_new:
            plan, warmed = current, self._fill(current)
        else:
            plan, warmed = introduce(self._versions, plan, self._fill, share=share)
        self._place(asked)
        texts = {i: p.text for i, p in passages.items()}
        return RefitReport(
            plan_id=plan.id,
            version=plan.version,
            is_new=is_new,
            is_in_force=not is_new or share is None,
            num_questions=len(asked),
            num_new_questions=sum(not a.is_built for a in asked),
            num_clusters=len(plan.clusters),
            num_passages=len(plan.passages),
            before=suits(current, asked, texts) if current is not None else None,
            after=suits(plan, asked, texts),
            warm=warmed,
            seconds=time.perf_counter() - begin,
        )

    def _asked(self, since_days: float | None) -> tuple[list[Asked], dict[str, Passage]]:
        history, plan = self._learner.history, self._router.plan
        assert history is not None
        if since_days is not None and not since_days > 0:
            raise ConfigError(f"since_days must be a number of days above 0, not {since_days!r}")
        since_s = time.time() - since_days * DAY_S if since_days is not None else 0.0
        asked = history.asked(since_s=since_s)
        passages = history.passages(sorted({p for a in asked for p in a.seen.passages}))
        if plan is not None and not plan.is_online and not any(a.is_built for a in asked):
            known = {a.seen.question for a in asked}
            asked = [*self._recalled(plan, known), *asked]
            passages = {**plan.passages, **passages}
        # What was retrieved but is not known by text any more cannot be pinned.
        kept = [_with_passages(a, [p for p in a.seen.passages if p in passages]) for a in asked]
        if not kept:
            raise ConfigError(
                "there are no questions to refit from: none were asked through the retriever "
                "wrapper, and the plan was not built here; build(questions=...) instead"
            )
        return kept, passages

    def _recalled(self, plan: Plan, known: set[str]) -> list[Asked]:
        """Return what a plan itself still knows of its questions, where the history is lost."""
        pairs = [(q, c) for c in plan.clusters for q in c.members if q not in known]
        vectors = self._router.embedder.embed([q for q, _ in pairs])
        return [
            Asked(Seen(q, vector, c.pins, c.domain), 0, 0.0, is_built=True)
            for (q, c), vector in zip(pairs, vectors, strict=True)
        ]

    def _retrieved(
        self, asked: Sequence[Asked], retriever: Any, depth: int
    ) -> tuple[list[Asked], dict[str, Passage]]:
        """Ask a retriever anew, rather than take what it found when a question came."""
        retrieve = deep_retrieve(retriever)
        passages: dict[str, Passage] = {}
        found: list[Asked] = []
        for done, one in enumerate(asked):
            self._progress("retrieve", done, len(asked))
            best = list(retrieve(one.seen.question, depth))[:depth]
            passages.update((p.id, p) for p in best)
            found.append(_with_passages(one, [p.id for p in best]))
        self._progress("retrieve", len(asked), len(asked))
        return found, passages

    def _fitted(
        self, asked: Sequence[Asked], passages: Mapping[str, Passage], config: PlanConfig
    ) -> Plan:
        current = self._router.plan
        plan = fit_plan(
            [a.seen for a in asked],
            passages,
            config,
            namespace=self._versions.namespace,
            count_tokens=self._model.count_tokens,
            domain_settings=current.domain_settings if current is not None else None,
        )
        return replace(plan, source="refit", settings=asdict(config))

    def _fill(self, plan: Plan) -> WarmReport | None:
        return self._warm(plan, None) if self._warm is not None else None

    def _place(self, asked: Sequence[Asked]) -> None:
        """Mark the questions as having a cluster, so that none grows one of its own."""
        assert self._learner.history is not None
        self._learner.history.place([a.seen.question for a in asked])


def introduce(
    versions: Versions,
    plan: Plan,
    fill: Callable[[Plan], WarmReport | None],
    *,
    share: float | None = None,
) -> tuple[Plan, WarmReport | None]:
    """Save a plan as the next version, fill it, and only then switch to it or try it.

    Raises:
        ConfigError: A version is on trial.
    """
    staged = versions.stage(plan)
    try:
        warmed = fill(staged)
    except BaseException:
        versions.leave_trial()
        raise
    if share is None:
        versions.use(staged.version)
    else:
        versions.trial(staged.version, share=share)
    return staged, warmed


def _with_passages(asked: Asked, passages: Sequence[str]) -> Asked:
    return replace(asked, seen=replace(asked.seen, passages=tuple(passages)))


def _settings_of(plan: Plan | None) -> dict[str, Any]:
    """Return how a plan was fitted, as far as this version knows the settings."""
    known = {f.name for f in fields(PlanConfig)}
    return {n: v for n, v in (plan.settings if plan else {}).items() if n in known}


def suits(plan: Plan, asked: Sequence[Asked], texts: Mapping[str, str]) -> RequestFit:
    """Measure a plan on questions, by how often each came; built ones only where none came."""
    weights = np.array([a.times for a in asked], float)
    if not weights.sum():
        weights[:] = 1
    if not plan.clusters:
        return RequestFit(0.0, 0.0)
    vectors = np.stack([a.seen.embedding for a in asked])
    nearest = nearest_centroid(plan.projection.transform(vectors), plan.reduced())
    admitted = np.zeros(len(asked))
    covered = np.zeros(len(asked))
    for i, (one, number) in enumerate(zip(asked, nearest, strict=True)):
        cluster = plan.clusters[int(number)]
        admitted[i] = float(np.linalg.norm(vectors[i] - cluster.centroid)) <= cluster.radius
        pinned = {p.text for p in plan.pinned(cluster)}
        best = one.seen.passages[:COVERED]
        found = sum(texts.get(p) in pinned for p in best)
        covered[i] = admitted[i] * found / len(best) if best else 0.0
    total = float(weights.sum())
    return RequestFit(float(weights @ admitted) / total, float(weights @ covered) / total)
