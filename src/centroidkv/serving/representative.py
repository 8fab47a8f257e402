"""The source paper's Algorithm 1: serving a question with what another one left.

Here similarity decides, so the answer may be another question's. It is opt-in, its usage says
`approximate` and names the representative, and nothing of it is written where exact KV is
looked up: a representative's KV is that of its own prompt, stored under its own token ids.
"""

import json
import logging
from collections.abc import Collection
from dataclasses import asdict, dataclass, field, replace
from typing import Any

import numpy as np

from centroidkv.config import EngineConfig, Sampling
from centroidkv.errors import NotCalibrated, StoreError
from centroidkv.fingerprint import fingerprint
from centroidkv.kv.blocks import block_id, namespace_id
from centroidkv.routing.calibration import Calibration
from centroidkv.routing.router import Router
from centroidkv.serving.answers import Answer, AnswerStore
from centroidkv.serving.outcome import Layout
from centroidkv.serving.watching import note_route
from centroidkv.store import Store
from centroidkv.types import FloatArray, Prompt, Record, Route

_log = logging.getLogger("centroidkv")

__all__ = ["Carried", "Representatives", "StandIn"]


@dataclass(frozen=True, slots=True)
class Carried:
    """How many representatives were carried over to another plan version, and how many not."""

    kept: int
    dropped: int


@dataclass(frozen=True, slots=True)
class StandIn:
    """What a cluster's representative left: its question, its prompt's tokens and its answer.

    `passages` are the texts in that prompt, as far as they are known; `vector` is the question's,
    [dim], of one that was found.
    """

    question: str
    prompt_ids: tuple[int, ...]
    answer: str
    answer_ids: tuple[int, ...]
    finish_reason: str
    passages: tuple[str, ...] = ()
    vector: FloatArray | None = field(default=None, repr=False, compare=False)


class Representatives:
    """The map M of Algorithm 1: from a cluster of the plan in force to its representative.

    Entries belong to one model, tenant and plan, and to one head of the prompt, so that several
    chains on one engine do not meet. They live in the answer store.
    """

    def __init__(self, store: Store, router: Router, namespace: str) -> None:
        self.config: EngineConfig = store.config
        self._store = store
        self._router = router
        self._namespace = namespace
        self._answers: AnswerStore | None = None
        self.num_kept = 0
        self.calibration: Calibration | None = None

    def route(self, question: str, record: Record | None) -> Route:
        """Return the route noted by a retriever wrapper, or route the question (steps 1 to 3).

        One that was noted for another question would serve the answer to that.
        """
        if record is not None and record.question == question:
            return record.route
        route = self._router.route(question)
        note_route(self._store.observer, self._router, route)
        return route

    def find(self, route: Route, key: str) -> StandIn | None:
        """Return the representative of the nearest cluster, if it has left something (step 4)."""
        plan = route.plan
        if self._store.read_only or not plan or route.cluster is None:
            return None
        try:
            found = self._kept().get(self._id(plan, route.cluster.id, key))
        except StoreError as error:
            _log.warning("the request goes on without a representative: %s", error)
            return None
        if found is None or found.vector is None:  # or in part unreadable: it is filled anew
            return None
        return replace(_from_text(found.answer), vector=found.vector)

    def keep(self, route: Route, key: str, stand_in: StandIn) -> bool:
        """Let a question stand for its cluster (step 5c: `M[j*] <- KV`)."""
        plan = route.plan
        if self._store.read_only or not plan or route.cluster is None:
            return False
        answer = Answer(
            self._id(plan, route.cluster.id, key),
            stand_in.question,
            _to_text(stand_in),
            0.0,
        )
        vector = np.asarray(route.embedding, np.float32)
        try:
            self._kept().put(answer, scope=plan, vector=vector)
        except StoreError as error:
            _log.warning("the representative could not be kept: %s", error)
            return False
        self.num_kept += 1
        return True

    def judge(self, question: str, stand_in: StandIn, route: Route, max_error: float) -> bool:
        """Tell whether a representative may answer for a question under a calibrated bound.

        Raises:
            NotCalibrated: The store has no calibration for this embedder.
        """
        if self.calibration is None:
            raise NotCalibrated(max_error)
        if stand_in.vector is None:
            return False  # what cannot be compared
        decision = self.calibration.decide(
            question,
            stand_in.question,
            route.embedding,
            stand_in.vector,
            max_error=max_error,
        )
        return decision.serve

    def key(self, prompt: Prompt, where: Layout, sampling: Sampling) -> str:
        """Return what an entry belongs to besides its cluster.

        For stored answers that is how they were decoded, too.
        """
        head = block_id(self._namespace, prompt.token_ids[: where.head])
        form = self.config.representative_form
        return fingerprint(head, form, repr(sampling) if form == "answer" else "")

    def carry(
        self, old: str, new: str, changed: Collection[int], texts: Collection[str]
    ) -> Carried:
        """Carry representatives over to a plan version of the same clusters.

        Left behind are those whose prompt held a passage that is not among `texts` any more and,
        where the passages of the prompt are not known, those of `changed` clusters. With `old`
        and `new` the same, they are dropped.
        """
        if self._store.read_only or not (self._store.path / "answers.sqlite").exists():
            return Carried(0, 0)
        kept = dropped = 0
        for answer, vector in self._kept().scoped(old):
            _, cluster, key = answer.id.split("/")
            passages = _from_text(answer.answer).passages
            stays = all(p in texts for p in passages) and (passages or int(cluster) not in changed)
            if not stays:
                dropped += 1
                if old == new:
                    self._kept().delete(answer_id=answer.id)
                continue
            kept += 1
            if old != new:
                moved = replace(answer, id=self._id(new, int(cluster), key))
                self._kept().put(moved, scope=new, vector=vector)
        return Carried(kept, dropped)

    def close(self) -> None:
        if self._answers is not None:
            self._answers.close()

    def _kept(self) -> AnswerStore:
        if self._answers is None:
            owner = namespace_id("representatives", self._namespace)
            self._answers = self._store.open_answers(owner)
        return self._answers

    def _id(self, plan_id: str, cluster: int, key: str) -> str:
        return f"{plan_id}/{cluster}/{key}"


def _to_text(stand_in: StandIn) -> str:
    row = asdict(replace(stand_in, vector=None))
    del row["vector"]  # has a column of its own
    return json.dumps(row, ensure_ascii=False)


def _from_text(text: str) -> StandIn:
    row: dict[str, Any] = json.loads(text)
    return StandIn(
        row["question"],
        tuple(row["prompt_ids"]),
        row["answer"],
        tuple(row["answer_ids"]),
        row["finish_reason"],
        tuple(row.get("passages", ())),
    )
