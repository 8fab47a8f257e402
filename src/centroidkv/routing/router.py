"""One question to one route: embed, reduce, nearest centroid, admission.

Owns which plan is in force. A plan is replaced as a whole, so a request sees the old one or the
new one, never a mixture.
"""

import logging
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from centroidkv.errors import CacheError
from centroidkv.protocols import CentroidIndex, Embedder
from centroidkv.routing.admission import distance
from centroidkv.routing.memory_index import MemoryIndex
from centroidkv.routing.plan import Plan
from centroidkv.types import Cluster, FloatArray, Route

_log = logging.getLogger("centroidkv")

__all__ = ["Router"]


@dataclass(frozen=True, slots=True)
class _InForce:
    plan: Plan
    index: CentroidIndex
    naive: MemoryIndex


class Router:
    """Routes questions by the plan in force. Safe for many threads.

    A failing embedder or index costs the route or some time, never the request.
    """

    def __init__(self, embedder: Embedder, open_index: Callable[[Plan], CentroidIndex]) -> None:
        self.embedder = embedder
        self.num_index_failures = 0
        self._open_index = open_index
        self._current: _InForce | None = None
        self._lock = threading.Lock()

    @property
    def plan(self) -> Plan | None:
        return self._current.plan if self._current else None

    def use(self, plan: Plan) -> None:
        """Put a plan in force."""
        with self._lock:
            old = self._current
            if old is not None:
                # While the indexes change places, the old plan routes from memory.
                self._current = _InForce(old.plan, old.naive, old.naive)
                self._close(old.index)
            naive = MemoryIndex()
            naive.put(plan.clusters, plan.reduced())
            try:
                index: CentroidIndex = self._open_index(plan)
            except CacheError as error:
                self._report(error)
                index = naive
            self._current = _InForce(plan, index, naive)

    def extend(self, plan: Plan, cluster: Cluster) -> None:
        """Put in force the same plan with one more cluster."""
        with self._lock:
            current = self._current
            assert current is not None
            reduced = plan.reduced([cluster])
            current.naive.put([cluster], reduced)
            self._current = _InForce(plan, current.index, current.naive)
            if current.index is not current.naive:
                try:
                    current.index.put([cluster], reduced)
                except CacheError as error:
                    self._report(error)

    def annotate(self, cluster: int, prefixes: dict[str, str]) -> None:
        """Note a cluster's KV in the index; the manifest is the truth."""
        current = self._current
        if current is None:
            return
        try:
            current.index.annotate(cluster, prefixes)
        except CacheError as error:
            self._report(error)

    def route(self, question: str, domain: str | None = None) -> Route:
        """Send a question to its nearest cluster; admission is by distance in the full space.

        With a `domain`, to the nearest of that domain; one without clusters admits nothing.
        """
        begin = time.perf_counter()
        vector = self._embed(question)
        embedded = time.perf_counter()
        current = self._current if vector.size else None
        cluster, far, admitted = None, float("inf"), False
        if current is not None:
            reduced = current.plan.projection.transform(vector[None])[0]
            nearest = self._nearest(current, reduced, domain)
            cluster = current.plan.cluster(nearest) if nearest is not None else None
            if cluster is not None:
                far = distance(vector, cluster.centroid)
                admitted = far <= cluster.radius
        done = time.perf_counter()
        times = (embedded - begin, done - embedded)
        return Route(question, vector, cluster, far, admitted, *times, domain)

    def _embed(self, question: str) -> FloatArray:
        """Embed a question; no vector at all when the embedder fails."""
        try:
            vector = np.asarray(self.embedder.embed([question])[0], np.float32)
            if not np.isfinite(vector).all():
                # It would be in the history, and the next plan could not be fitted.
                raise ValueError("the embedder gave a vector that is NaN or infinite")
            return vector
        except Exception as error:  # noqa: BLE001 - any embedder's failure only costs the route
            self._report(error)
            return np.empty(0, np.float32)

    def _nearest(self, current: _InForce, reduced: FloatArray, domain: str | None) -> int | None:
        try:
            return current.index.nearest(reduced, domain)
        except CacheError as error:
            self._report(error)
            return current.naive.nearest(reduced, domain)

    def _report(self, error: Exception) -> None:
        self.num_index_failures += 1
        if self.num_index_failures == 1:
            how = "from the plan in memory" if isinstance(error, CacheError) else "without a route"
            _log.warning("routing goes on %s: %s", how, error)

    def faults(self) -> list[str]:
        """Compare the centroid index with the plan in force; [] means sound."""
        current = self._current
        if current is None:
            return []
        try:
            return current.index.faults(current.plan.reduced())
        except CacheError as error:
            return [str(error)]

    def rebuild_index(self) -> None:
        """Put every centroid of the plan in force into the index again."""
        current = self._current
        if current is not None:
            current.index.put(current.plan.clusters, current.plan.reduced())

    def close(self) -> None:
        with self._lock:
            if self._current is not None:
                self._close(self._current.index)
                self._current = None

    def _close(self, index: CentroidIndex) -> None:
        try:
            index.close()
        except CacheError as error:
            self._report(error)
