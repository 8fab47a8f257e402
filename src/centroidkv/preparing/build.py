"""The offline half: past questions and a retriever become a plan in force.

questions -> embed, retrieve -> fit (`fitting.py`) -> plan file, centroid index.
"""

import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field, replace
from typing import Any

import numpy as np

from centroidkv.plan_config import PlanConfig
from centroidkv.preparing.batch_retrieval import retrieve_many
from centroidkv.preparing.gathering import Gathered
from centroidkv.preparing.sifting import SiftReport
from centroidkv.protocols import CausalModel, Progress
from centroidkv.routing.domains import DomainSettings, checked_settings
from centroidkv.routing.history import Seen
from centroidkv.routing.router import Router
from centroidkv.serving.learning import Learner
from centroidkv.types import FloatArray, Passage
from centroidkv.versions.fitting import fit_plan

__all__ = ["BuildReport", "Builder"]

EMBED_BATCH = 4096


@dataclass(frozen=True, slots=True)
class BuildReport:
    """What a build made.

    `domains` counts the clusters of each, {} where none was given; `chat_log` tells what of one
    was taken.
    """

    num_questions: int
    num_clusters: int
    num_passages: int
    plan_id: str
    is_new: bool
    seconds: float
    domains: dict[str, int] = field(default_factory=dict)
    chat_log: SiftReport | None = None


class Builder:
    """Makes plans for one store and puts them in force."""

    def __init__(self, router: Router, model: CausalModel, learner: Learner) -> None:
        self._router = router
        self._model = model
        self._learner = learner

    def build(
        self,
        asked: Gathered,
        retriever: Any,
        config: PlanConfig,
        progress: Progress,
        *,
        domain_settings: DomainSettings | None = None,
    ) -> BuildReport:
        """Fit a plan to past questions; one equal to that in force is not kept.

        Raises:
            ConfigError: Not a retriever, or a domain's settings are wrong.
        """
        begin = time.perf_counter()
        # Before the questions are embedded, which takes longer than a typing error should.
        checked_settings(domain_settings, set(asked.domains.values()), config)
        seen, passages = self._observe(
            list(asked.domains), retriever, config.retrieval_depth, progress
        )
        plan = fit_plan(
            seen,
            passages,
            config,
            namespace=self._learner.versions.namespace,
            count_tokens=self._model.count_tokens,
            domains=asked.domains,
            domain_settings=domain_settings,
        )
        plan = replace(plan, source="build", settings=asdict(config))
        self._learner.remember_built(seen, passages, asked.domains)
        is_new = self._learner.versions.put_in_force(plan)
        in_force = self._router.plan or plan
        return BuildReport(
            num_questions=len(asked.domains),
            num_clusters=len(in_force.clusters),
            num_passages=len(in_force.passages),
            plan_id=in_force.id,
            is_new=is_new,
            seconds=time.perf_counter() - begin,
            domains=dict(sorted(Counter(c.domain for c in in_force.clusters if c.domain).items())),
            chat_log=asked.chat_log,
        )

    def _observe(
        self, questions: Sequence[str], retriever: Any, depth: int, progress: Progress
    ) -> tuple[list[Seen], dict[str, Passage]]:
        """Embed the questions and ask the retriever; return them with all passages by id."""
        vectors = self._embed(questions, progress)
        seen: list[Seen] = []
        passages: dict[str, Passage] = {}
        retrieved = retrieve_many(retriever, questions, vectors, depth)
        for done, (question, vector, found) in enumerate(
            zip(questions, vectors, retrieved, strict=True)
        ):
            progress("retrieve", done, len(questions))
            passages.update((p.id, p) for p in found)
            seen.append(Seen(question, vector, tuple(p.id for p in found)))
        progress("retrieve", len(questions), len(questions))
        return seen, passages

    def _embed(self, questions: Sequence[str], progress: Progress) -> FloatArray:
        """Embed in parts, so that a long run shows how far it is."""
        parts = []
        for start in range(0, len(questions), EMBED_BATCH):
            progress("embed", start, len(questions))
            parts.append(self._router.embedder.embed(questions[start : start + EMBED_BATCH]))
        progress("embed", len(questions), len(questions))
        return np.concatenate(parts)
