"""One question to one route: embed, reduce, nearest centroid, admission.

Owns which plans serve: the one in force and, for a share of the questions, one on trial. A plan
is replaced as a whole, so a request sees the old one or the new one, never a mixture.
"""

import contextlib
import logging
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import numpy as np

from centroidkv.error_kinds import kind_of
from centroidkv.errors import CacheError, IndexClosed
from centroidkv.protocols import CentroidIndex, Embedder
from centroidkv.routing.admission import distance
from centroidkv.routing.memory_index import MemoryIndex
from centroidkv.routing.plan import Plan
from centroidkv.routing.share import is_in_share
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

    def __init__(
        self,
        embedder: Embedder,
        open_index: Callable[[Plan], CentroidIndex],
        masked: Callable[[str], str] = lambda text: text,
    ) -> None:
        self.embedder = embedder
        self._masked = masked  # what may be stored of a text, its embedding included
        self.num_index_failures = 0
        self._open_index = open_index
        self._is_lost = False  # the last question was routed without the index
        self._current: _InForce | None = None
        self._trial: _InForce | None = None
        self._share = 0.0
        self._left: Plan | None = None  # for requests under way while plans change places
        self._lock = threading.Lock()

    @property
    def plan(self) -> Plan | None:
        return self._current.plan if self._current else None

    @property
    def trial(self) -> Plan | None:
        """The plan on trial, if any; its share may be 0 while it is prepared."""
        return self._trial.plan if self._trial else None

    @property
    def routes_by(self) -> Literal["chroma", "memory"]:
        """What found the nearest centroid last, or will at first."""
        current = self._current
        if current is None or isinstance(current.index, MemoryIndex) or self._is_lost:
            return "memory"
        return "chroma"

    def plan_of(self, route: Route) -> Plan | None:
        """Return the plan that routed a question, while it serves or has only just ceased to."""
        known = (self.plan, self.trial, self._left)
        return next((p for p in known if p is not None and p.id == route.plan), None)

    def use(self, plan: Plan) -> None:
        """Put a plan in force."""
        with self._lock:
            old = self._current
            if old is not None:
                # While the indexes change places, the old plan routes from memory.
                self._current = _InForce(old.plan, old.naive, old.naive)
                self._left = old.plan
                self._close(old.index)
            self._current = self._opened(plan)

    def _opened(self, plan: Plan) -> _InForce:
        naive = MemoryIndex()
        naive.put(plan.clusters, plan.reduced())
        try:
            index: CentroidIndex = self._open_index(plan)
        except CacheError as error:
            self._lost(error)
            index = naive
        return _InForce(plan, index, naive)

    def try_beside(self, plan: Plan, share: float) -> None:
        """Let a plan serve a share of the questions; with 0 it is only made ready."""
        with self._lock:
            old = self._trial
            if old is None or old.plan.id != plan.id:
                self._share, self._trial = 0.0, self._opened(plan)
                if old is not None:
                    self._left = old.plan
                    self._close(old.index)
            self._share = share

    def end_trial(self, *, promote: bool) -> None:
        """End the trial; with `promote` its plan is in force from the next question on."""
        with self._lock:
            if self._trial is None:
                return
            old = self._current if promote else self._trial
            if promote:
                self._current = self._trial
            self._share, self._trial = 0.0, None
            if old is not None:
                self._left = old.plan
                self._close(old.index)

    def _chosen(self, question: str) -> _InForce | None:
        trial, share = self._trial, self._share
        if trial is not None and is_in_share(question, share, salt=trial.plan.id):
            return trial
        return self._current

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
                    self._lost(error)

    def annotate(self, cluster: int, prefixes: dict[str, str], *, plan: str | None = None) -> None:
        """Note a cluster's KV in the index of a plan that serves; the manifest is the truth."""
        for serving in (self._current, self._trial):
            if serving is not None and plan in (None, serving.plan.id):
                try:
                    serving.index.annotate(cluster, prefixes)
                except CacheError as error:
                    self._lost(error)
                return

    def route(self, question: str, domain: str | None = None) -> Route:
        """Send a question to its nearest cluster; admission is by distance in the full space.

        With a `domain`, to the nearest of that domain; one without clusters admits nothing.
        """
        begin = time.perf_counter()
        vector = self._embed(question)
        embedded = time.perf_counter()
        current = self._chosen(question) if vector.size else None
        cluster, far, admitted = None, float("inf"), False
        if current is not None:
            reduced = current.plan.projection.transform(vector[None])[0]
            nearest = self._nearest(current, reduced, domain)
            cluster = current.plan.cluster(nearest) if nearest is not None else None
            if cluster is not None:
                far = distance(vector, cluster.centroid)
                admitted = far <= cluster.radius
        done = time.perf_counter()
        plan = current.plan.id if current else ""
        times = (embedded - begin, done - embedded)
        return Route(question, vector, cluster, far, admitted, *times, domain, plan)

    def _embed(self, question: str) -> FloatArray:
        """Embed a question; no vector at all when the embedder fails."""
        try:
            vector = np.asarray(self.embedder.embed([self._masked(question)])[0], np.float32)
        except Exception as error:  # noqa: BLE001 - any embedder's failure only costs the route
            # Not the error itself: its message may quote the question.
            self._report("without a route", f"the embedder raised {kind_of(error)}")
            return np.empty(0, np.float32)
        if not np.isfinite(vector).all():
            # It would be in the history, and the next plan could not be fitted.
            self._report("without a route", "the embedder gave a vector that is NaN or infinite")
            return np.empty(0, np.float32)
        return vector

    def _nearest(self, current: _InForce, reduced: FloatArray, domain: str | None) -> int | None:
        try:
            found = current.index.nearest(reduced, domain)
            self._is_lost = False
            return found
        except CacheError as error:
            self._lost(error)
            self._is_lost = self._is_lost or not isinstance(error, IndexClosed)
            return current.naive.nearest(reduced, domain)

    def _lost(self, error: CacheError) -> None:
        if isinstance(error, IndexClosed):  # another took its place meanwhile: nobody's fault
            return
        self._report("from the plan in memory", str(error))

    def _report(self, how: str, why: str) -> None:
        self.num_index_failures += 1
        if self.num_index_failures == 1:
            _log.warning("routing goes on %s: %s", how, why)

    def faults(self) -> list[str]:
        """Compare the centroid indexes with the plans that serve; [] means sound."""
        faults: list[str] = []
        for serving in (self._current, self._trial):
            try:
                if serving is not None:
                    faults += serving.index.faults(serving.plan.reduced())
            except IndexClosed:  # no longer what serves
                continue
            except CacheError as error:
                faults.append(str(error))
        return faults

    def rebuild_index(self) -> None:
        """Put every centroid of the plans that serve into their indexes again."""
        for serving in (self._current, self._trial):
            if serving is not None:
                with contextlib.suppress(IndexClosed):  # no longer what serves
                    serving.index.put(serving.plan.clusters, serving.plan.reduced())

    def close(self) -> None:
        """Let go of every plan; `use` begins anew."""
        with self._lock:
            for serving in (self._trial, self._current):
                if serving is not None:
                    self._close(serving.index)
            self._current = self._trial = self._left = None

    def indexed(self) -> dict[str, str]:
        """Return the representatives that the indexes of the plans that serve hold, by entry."""
        found: dict[str, str] = {}
        for serving in (self._current, self._trial):
            representatives = getattr(serving.index, "representatives", None) if serving else None
            if serving is not None and representatives is not None:
                found |= {f"{serving.plan.id}/{c}": t for c, t in representatives().items()}
        return found

    def _close(self, index: CentroidIndex) -> None:
        try:
            index.close()
        except CacheError as error:
            self._lost(error)
