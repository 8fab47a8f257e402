"""Which pins a question gets, once it is known what was retrieved for it.

The nearest cluster is a guess from the question alone. What the retriever found is known before
the prompt is made, and says which cluster's KV spares most: choosing by it covers ten points more
of what is found than the nearest cluster does (docs/benchmarks.md). Costs look-ups, no model.
"""

import operator
import threading
from collections.abc import Sequence
from dataclasses import dataclass

from centroidkv.config import EngineConfig
from centroidkv.routing.pin_index import PinIndex
from centroidkv.routing.plan import Plan
from centroidkv.types import Cluster, Passage, Route

__all__ = ["PinChooser", "Pinned"]

SERVING = 2  # plans at most: the one in force, and one on trial


@dataclass(frozen=True, slots=True)
class Pinned:
    """What goes first into a prompt, and the cluster whose leading pins it is, if any."""

    cluster: Cluster | None
    passages: list[Passage]


class PinChooser:
    """Chooses cluster and pins for one engine. Safe for many threads."""

    def __init__(self, config: EngineConfig) -> None:
        self._config = config
        self._indexed: list[tuple[Plan, PinIndex]] = []  # the newest last
        self._lock = threading.Lock()

    def choose(self, plan: Plan | None, route: Route, found: Sequence[Passage]) -> Pinned:
        """Choose pins for what was found; none for a question that no cluster admits."""
        nearest = self.nearest(plan, route)
        is_fixed = self._config.pins_by == "nearest" or self._config.reuse == "representative"
        if plan is None or nearest.cluster is None or is_fixed:
            return nearest
        with self._lock:
            best = self._index_of(plan).best(
                (p.text for p in found),
                route.embedding,
                carry_cost=self._config.carry_cost,
                first=nearest.cluster,
                domain=route.domain,
            )
        if best is None:
            return nearest
        return Pinned(best.cluster, plan.pinned(best.cluster)[: best.num_pins])

    def nearest(self, plan: Plan | None, route: Route) -> Pinned:
        """Return all pins of the cluster that a question was sent to, if it admits it."""
        if plan is None or route.cluster is None or not route.is_admitted:
            return Pinned(None, [])
        if self._config.reuse == "representative":
            return Pinned(route.cluster, [])  # the paper's system pins nothing
        return Pinned(route.cluster, plan.pinned(route.cluster))

    def _index_of(self, plan: Plan) -> PinIndex:
        """Return the plan's index; one of a plan that has grown is added to."""
        for known, index in self._indexed:
            if known is plan:
                return index
        old = next((i for i in self._indexed if _has_grown(i[0], plan)), None)
        index, begin = (old[1], len(old[0].clusters)) if old else (PinIndex(), 0)
        index.put(plan.clusters[begin:], plan.passages)
        kept = [i for i in self._indexed if i is not old]
        self._indexed = [*kept, (plan, index)][-SERVING:]
        return index


def _has_grown(old: Plan, new: Plan) -> bool:
    kept = new.clusters[: len(old.clusters)]
    return len(kept) == len(old.clusters) and all(map(operator.is_, kept, old.clusters))
