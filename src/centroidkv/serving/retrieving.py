"""The retrieval half of a request: route the question, pin its cluster's passages, note them.

1. route, and start loading the cluster's KV   2. choose the pins by what was found
3. pinned passages first, then what was found besides   4. note it all for the model
"""

import time
from collections.abc import Sequence

from centroidkv.errors import ConfigError
from centroidkv.routing.records import RecordRing
from centroidkv.routing.router import Router
from centroidkv.serving.choosing import PinChooser, Pinned
from centroidkv.serving.warming import current_warming
from centroidkv.serving.watching import note_route
from centroidkv.store import Store
from centroidkv.types import Cluster, Passage, Record, Route, valid_text
from centroidkv.versions.pinning import keep_in_memory

__all__ = ["Retrieving"]


class Retrieving:
    """Serves the retriever wrappers of one engine. `namespace` is the KV namespace."""

    def __init__(self, store: Store, router: Router, records: RecordRing, namespace: str) -> None:
        self._store = store
        self._router = router
        self._records = records
        self._namespace = namespace
        self._chooser = PinChooser(store.config)
        keep_in_memory(store)

    def route(self, question: str, domain: str | None = None) -> Route:
        """Send a question to its cluster, and start loading the cluster's KV.

        Raises:
            ConfigError: Question or domain is not a text.
        """
        for name, text in (("question", question), ("domain", "" if domain is None else domain)):
            if not isinstance(text, str):
                raise ConfigError(f"{name} must be a text, not {text!r}")
        route = self._router.route(valid_text(question), domain)
        note_route(self._store.observer, self._router, route)
        if current_warming() is None and route.is_admitted:
            self._prefetch(route, route.cluster)
        return route

    def preload(self) -> None:
        """With the one context of `preset="cag"`: bring all KV into memory, if it has room."""
        plan = self._router.plan
        if plan is None or self._store.config.preset != "cag":
            return
        for cluster in plan.clusters:
            self._store.prefetcher.load(self._namespace, plan.id, cluster.id)

    def _prefetch(self, route: Route, cluster: Cluster | None) -> None:
        plan = self._router.plan_of(route)
        if plan is not None and cluster is not None:
            self._store.prefetcher.begin(self._namespace, plan.id, cluster.id)

    def compose(self, route: Route, found: Sequence[Passage]) -> list[Passage]:
        """Order passages for the prompt and note them for the model."""
        pinned = self._chosen(route, found)
        if current_warming() is not None:
            found = []
        elif pinned.cluster is not route.cluster:
            self._prefetch(route, pinned.cluster)
        # By text, since a retriever that writes scores into the metadata changes every id.
        first = {p.text for p in pinned.passages}
        passages = [*pinned.passages, *(p for p in found if p.text not in first)]
        if self._store.config.repeat_best and found and passages[-1].text != found[0].text:
            passages.append(found[0])
        self._records.put(
            Record(
                question=route.question,
                route=route,
                passages=tuple(passages),
                num_pins=len(pinned.passages),
                found=tuple(p.text for p in found),
                time_s=time.time(),
                cluster=pinned.cluster,
            )
        )
        return passages

    def pinned(self, route: Route, found: Sequence[Passage] | None = None) -> list[Passage]:
        """Return what `compose` puts first; without `found`, all pins of the nearest cluster."""
        return self._chosen(route, found).passages

    def _chosen(self, route: Route, found: Sequence[Passage] | None) -> Pinned:
        run, plan = current_warming(), self._router.plan_of(route)
        if run is not None:
            return Pinned(run.cluster, run.pinned)
        if found is None:
            return self._chooser.nearest(plan, route)
        return self._chooser.choose(plan, route, found)
