"""The offline half: past questions and a retriever become a plan in force.

questions -> embed, retrieve -> fit (`fitting.py`) -> plan file, centroid index.
"""

import time
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from centroidkv.batch_retrieval import retrieve_many
from centroidkv.config import PlanConfig
from centroidkv.errors import ConfigError
from centroidkv.fitting import fit_plan
from centroidkv.learning import Learner
from centroidkv.protocols import CausalModel, Progress
from centroidkv.routing.history import Seen
from centroidkv.routing.router import Router
from centroidkv.types import FloatArray, Passage, valid_text

__all__ = ["BuildReport", "Builder", "clean_questions"]

EMBED_BATCH = 4096


@dataclass(frozen=True, slots=True)
class BuildReport:
    """What a build made."""

    num_questions: int
    num_clusters: int
    num_passages: int
    plan_id: str
    is_new: bool
    seconds: float


def clean_questions(
    questions: Iterable[str], domains: Iterable[str] | None = None
) -> dict[str, str]:
    """Return the distinct, non-blank questions, each with its domain ("" when unknown).

    Raises:
        ConfigError: There are none, one is not text, or there are more or fewer domains.
    """
    asked = list(questions)
    kinds = list(domains) if domains is not None else [""] * len(asked)
    if len(kinds) != len(asked):
        raise ConfigError(f"{len(asked)} questions came with {len(kinds)} domains")
    odd = [q for q in asked if not isinstance(q, str)]
    if odd:
        raise ConfigError(f"questions must be strings, found {type(odd[0]).__name__}: {odd[0]!r}")
    cleaned: dict[str, str] = {}
    for question, domain in zip(asked, kinds, strict=True):
        text = " ".join(valid_text(question).split())
        if text:
            cleaned.setdefault(text, domain or "")
    if not cleaned:
        raise ConfigError("there are no questions to build from: the list is empty or all blank")
    return cleaned


class Builder:
    """Makes plans for one store and puts them in force."""

    def __init__(self, router: Router, model: CausalModel, learner: Learner) -> None:
        self._router = router
        self._model = model
        self._learner = learner

    def build(
        self,
        asked: dict[str, str],
        retriever: Any,
        config: PlanConfig,
        progress: Progress,
    ) -> BuildReport:
        """Fit a plan to questions (each with its domain); one equal to that in force is not kept.

        Raises:
            ConfigError: Not a retriever.
        """
        begin = time.perf_counter()
        seen, passages = self._observe(list(asked), retriever, config.retrieval_depth, progress)
        plan = fit_plan(
            seen,
            passages,
            config,
            namespace=self._learner.plan_namespace,
            count_tokens=self._model.count_tokens,
            domains=asked,
        )
        is_new = self._learner.put_in_force(plan)
        in_force = self._router.plan or plan
        return BuildReport(
            num_questions=len(asked),
            num_clusters=len(in_force.clusters),
            num_passages=len(in_force.passages),
            plan_id=in_force.id,
            is_new=is_new,
            seconds=time.perf_counter() - begin,
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
