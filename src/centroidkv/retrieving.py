"""The retrieval half of a request: route the question, pin its cluster's passages, note them.

1. route, and start loading the cluster's KV   2. pinned passages first, then what was found
3. note question, route and passages for the model
"""

import time
from collections.abc import Sequence

from centroidkv.routing.records import RecordRing
from centroidkv.routing.router import Router
from centroidkv.store import Store
from centroidkv.types import Passage, Record, Route
from centroidkv.warming import current_warming

__all__ = ["Retrieving"]


class Retrieving:
    """Serves the retriever wrappers of one engine. `namespace` is the KV namespace."""

    def __init__(self, store: Store, router: Router, records: RecordRing, namespace: str) -> None:
        self._store = store
        self._router = router
        self._records = records
        self._namespace = namespace

    def route(self, question: str) -> Route:
        """Send a question to its cluster, and start loading the cluster's KV."""
        run = current_warming()
        route = self._router.route(question)
        plan = self._router.plan_of(route)
        if run is None and route.is_admitted and route.cluster is not None and plan is not None:
            self._store.prefetcher.begin(self._namespace, plan.id, route.cluster.id)
        return route

    def compose(self, route: Route, found: Sequence[Passage]) -> list[Passage]:
        """Order passages for the prompt and note them for the model."""
        pinned = self.pinned(route)
        if current_warming() is not None:
            found = []
        # By text, since a retriever that writes scores into the metadata changes every id.
        first = {p.text for p in pinned}
        passages = [*pinned, *(p for p in found if p.text not in first)]
        self._records.put(
            Record(
                question=route.question,
                route=route,
                passages=tuple(passages),
                num_pins=len(pinned),
                found=tuple(p.text for p in found),
                time_s=time.time(),
            )
        )
        return passages

    def pinned(self, route: Route) -> list[Passage]:
        """Return the passages pinned for a route, in canonical order."""
        run, plan = current_warming(), self._router.plan_of(route)
        if run is not None:
            return run.pinned
        if self._store.config.reuse == "representative":
            return []  # the paper's system pins nothing
        is_admitted = route.is_admitted and route.cluster is not None
        return plan.pinned(route.cluster) if is_admitted and plan and route.cluster else []
