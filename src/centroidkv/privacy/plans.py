"""Plans and their centroid index as places that hold texts: questions, and pinned passages.

A plan version is written over itself without what is forgotten; a cluster that only one question
made is emptied, since its centroid is that question's embedding. Every kept version counts.
"""

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np

from centroidkv.errors import CacheError, IndexUnavailable
from centroidkv.privacy.report import Held
from centroidkv.privacy.wanted import Wanted
from centroidkv.routing.plan import Plan
from centroidkv.routing.router import Router
from centroidkv.store import Store
from centroidkv.types import Cluster
from centroidkv.versions.in_force import Versions

# Where an emptied cluster's centroid is put: no question, a unit vector, is near it.
FAR = 1000.0

__all__ = ["PlansPlace", "without"]


class PlansPlace:
    """The plan versions of one tenant and what the centroid index holds of them. See `Place`."""

    name = "plans"

    def __init__(self, store: Store, versions: Versions, router: Router) -> None:
        self._store = store
        self._versions = versions
        self._router = router

    def find(self, wanted: Wanted) -> list[Held]:
        found = [held for plan in self._plans() for held in self._of_plan(plan, wanted)]
        try:
            indexed = self._router.indexed()
        except IndexUnavailable:
            indexed = {}  # it is made again from the plans before it is read
        found += [
            Held("chroma", entry, text)
            for entry, text in indexed.items()
            if text and wanted.is_question(text)
        ]
        found += [Held(self.name, path.name, "") for path in self._unreadable(wanted)]
        if wanted.everything:
            found += [Held(self.name, p.name, "") for p in self._calibrations()]
        return found

    def _of_plan(self, plan: Plan, wanted: Wanted) -> Iterator[Held]:
        for cluster in plan.clusters:
            for text in dict.fromkeys((cluster.representative, *cluster.members)):
                if text and wanted.is_question(text):
                    is_first = text == cluster.representative
                    about = {"is_representative": is_first, "num_members": cluster.num_members}
                    yield Held(self.name, f"{plan.id}/{cluster.id}", text, about)
        for passage in plan.passages.values():
            if wanted.is_passage(passage):
                pinned = [c.id for c in plan.clusters if passage.id in c.pins]
                yield Held(self.name, passage.id, passage.text, {"plan": plan.id, "pinned": pinned})

    def forget(self, wanted: Wanted) -> int:
        if wanted.before_s is not None and not wanted.questions:
            return 0
        found = self.find(wanted)
        if not found and wanted.before_s is not None:
            return 0
        with self._versions.files.writing():
            plans = list(self._plans())
            for path in self._unreadable(wanted):
                path.unlink(missing_ok=True)
            if wanted.everything:
                self._remove(plans)
            else:
                for plan in plans:
                    cleaned = without(plan, wanted)
                    if cleaned is not plan:
                        self._store.plans.save(cleaned)
            # Whatever the plans say: what is resumed may have been killed just here.
            self._router.close()
            try:
                self._store.erase_index(self._versions.namespace)
            finally:
                self._versions.load()
        return len(found)

    def _remove(self, plans: list[Plan]) -> None:
        folder, namespace = self._store.plans, self._versions.namespace
        for plan in plans:
            self._store.blocks.disk.manifest.drop_prefixes(plan.id)
        for path in [*folder.files(namespace), folder.pointer_path(namespace)]:
            path.unlink(missing_ok=True)
        for path in self._calibrations():
            path.unlink(missing_ok=True)

    def _calibrations(self) -> list[Path]:
        path = self._store.plans.pointer_path(self._versions.namespace)
        return [p for p in [path.with_suffix(".calibration")] if p.exists()]

    def scrub(self) -> str | None:
        return None

    def _plans(self) -> Iterator[Plan]:
        """Yield every version that can be read."""
        for number in self._versions.files.numbers:
            try:
                yield self._store.plans.load(self._versions.namespace, number)
            except CacheError:
                continue

    def _unreadable(self, wanted: Wanted) -> list[Path]:
        """Return the files that tell nothing of what they hold: they go with any text."""
        if wanted.before_s is not None:
            return []
        readable = {plan.id for plan in self._plans()}
        files = self._store.plans.files(self._versions.namespace)
        return [path for path in files if path.stem not in readable]


def without(plan: Plan, wanted: Wanted) -> Plan:
    """Return a plan without the questions and passages that are wanted; itself if it has none."""
    gone = {p.id for p in plan.passages.values() if wanted.is_passage(p)}
    clusters = tuple(_cleaned(cluster, wanted, gone) for cluster in plan.clusters)
    if not gone and all(new is old for new, old in zip(clusters, plan.clusters, strict=True)):
        return plan
    passages = {i: p for i, p in plan.passages.items() if i not in gone}
    return replace(plan, clusters=clusters, passages=passages)


def _cleaned(cluster: Cluster, wanted: Wanted, gone: set[str]) -> Cluster:
    pins = tuple(p for p in cluster.pins if p not in gone)
    members = tuple(m for m in cluster.members if not wanted.is_question(m))
    is_left = not (cluster.representative and wanted.is_question(cluster.representative))
    if is_left and (members, pins) == (cluster.members, cluster.pins):
        return cluster
    if is_left:
        return replace(cluster, members=members, pins=pins)
    if cluster.num_members <= 1:
        far = np.full_like(cluster.centroid, FAR)
        return replace(cluster, representative="", members=(), pins=(), centroid=far, radius=-1.0)
    first = next(iter(members), "")
    return replace(cluster, representative=first, members=members, pins=pins)
