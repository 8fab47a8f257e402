"""Changed passages: what depended on them is made anew, and only that.

A passage is known by the hash of its content. Where a pinned one is gone from the knowledge base,
its successor takes its place (the passage of the same source), or none; the clusters that pinned
it change in the next plan version, all others keep their pins, their KV and where it lies.
"""

import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from centroidkv.errors import ConfigError
from centroidkv.preparing.refit import WarmPlan, introduce
from centroidkv.preparing.warm import WarmReport
from centroidkv.retrieval import as_passage
from centroidkv.routing.plan import Plan
from centroidkv.serving.learning import Learner
from centroidkv.serving.representative import Carried, Representatives
from centroidkv.types import Cluster, Passage

__all__ = ["RefreshReport", "Refresher", "successors_of"]


@dataclass(frozen=True, slots=True)
class RefreshReport:
    """What changed. Passages are pinned ones; `changed_clusters` are the ids of theirs.

    `kept_answers` and `dropped_answers` are those of representatives (`reuse="representative"`).
    """

    plan_id: str
    version: int
    is_new: bool
    replaced_passages: int
    dropped_passages: int
    changed_clusters: tuple[int, ...]
    kept_clusters: int
    kept_answers: int
    dropped_answers: int
    warm: WarmReport | None
    seconds: float


class Refresher:
    """Brings one engine's plan up to a changed knowledge base."""

    def __init__(
        self,
        learner: Learner,
        representatives: Representatives,
        count_tokens: Callable[[str], int],
    ) -> None:
        self._learner = learner
        self._store = learner.store
        self._router = learner.router
        self._representatives = representatives
        self._count_tokens = count_tokens

    def refresh(
        self, passages: Iterable[Any], warm: WarmPlan | None, *, source_key: str
    ) -> RefreshReport:
        """Take over a knowledge base: the whole of it, as it is now.

        Raises:
            ConfigError: There is no plan, the base holds nothing of it, or a version is on trial.
        """
        begin = time.perf_counter()
        base = [as_passage(p) for p in passages]
        plan, history = self._router.plan, self._learner.history
        assert history is not None
        if plan is None:
            raise ConfigError("there is no plan to refresh; call build(questions=..., ...) first")
        self._learner.versions.require_no_trial()
        known = {**history.known_passages(), **plan.passages}
        successors = successors_of(known, base, source_key=source_key)
        gone = {i for i in plan.passages if i in successors}
        if plan.passages and all(successors.get(i, i) is None for i in plan.passages):
            raise ConfigError(
                f"none of the {len(plan.passages)} pinned passages is among the {len(base)} "
                "given: give the whole knowledge base as it is now, or build a new plan"
            )
        changed = tuple(c.id for c in plan.clusters if gone.intersection(c.pins))
        staging = _Staging(plan, set(changed), {p.text for p in base})
        plan, warmed = self._next(staging, successors, warm)
        history.replace_passages(successors)
        return RefreshReport(
            plan_id=plan.id,
            version=plan.version,
            is_new=bool(changed),
            replaced_passages=sum(successors[i] is not None for i in gone),
            dropped_passages=sum(successors[i] is None for i in gone),
            changed_clusters=changed,
            kept_clusters=len(plan.clusters) - len(changed),
            kept_answers=staging.answers.kept,
            dropped_answers=staging.answers.dropped,
            warm=warmed,
            seconds=time.perf_counter() - begin,
        )

    def _next(
        self,
        staging: "_Staging",
        successors: Mapping[str, Passage | None],
        warm: WarmPlan | None,
    ) -> tuple[Plan, WarmReport | None]:
        """Put the next version in force, if any cluster changes; carry over what stays."""
        old = staging.old
        if not staging.changed:
            staging.answers = self._representatives.carry(old.id, old.id, set(), staging.texts)
            return old, None
        return introduce(
            self._learner.versions,
            self._replaced(old, successors),
            lambda staged: self._prepare(staging, staged, warm),
        )

    def _replaced(self, plan: Plan, successors: Mapping[str, Passage | None]) -> Plan:
        """Return the plan with successors in the place of what is gone."""
        known = dict(plan.passages)
        known.update((p.id, p) for p in successors.values() if p is not None)
        clusters = tuple(self._with_pins(c, plan, known, successors) for c in plan.clusters)
        pinned = {p: known[p] for c in clusters for p in c.pins}
        return replace(plan, clusters=clusters, passages=pinned, source="refresh")

    def _with_pins(
        self,
        cluster: Cluster,
        plan: Plan,
        known: Mapping[str, Passage],
        successors: Mapping[str, Passage | None],
    ) -> Cluster:
        if not any(p in successors for p in cluster.pins):
            return cluster
        pins: list[str] = []
        room = int(plan.settings.get("max_pin_tokens", 0)) or None
        for old in cluster.pins:
            new = successors.get(old, known.get(old))
            if new is None or new.id in pins:
                continue
            if room is not None and new.id != old:
                # A successor may be longer; the budget of the build holds for it too.
                others = sum(self._count_tokens(known[p].text) for p in cluster.pins if p != old)
                if others + self._count_tokens(new.text) > room:
                    continue
            pins.append(new.id)
        return replace(cluster, pins=tuple(pins))

    def _prepare(
        self, staging: "_Staging", staged: Plan, warm: WarmPlan | None
    ) -> WarmReport | None:
        """Give the version that is to come all that has not changed, then fill what has."""
        old, changed = staging.old, staging.changed
        kept = [c.id for c in staged.clusters if c.id not in changed]
        self._store.writer.flush()
        self._store.blocks.disk.manifest.copy_prefixes(old.id, staged.id, kept)
        staging.answers = self._representatives.carry(old.id, staged.id, changed, staging.texts)
        return warm(staged, changed) if warm is not None else None


@dataclass(slots=True)
class _Staging:
    """A refresh under way: the plan before, the clusters that change, the texts there are now."""

    old: Plan
    changed: set[int]
    texts: set[str]
    answers: Carried = field(default_factory=lambda: Carried(0, 0))


def successors_of(
    known: Mapping[str, Passage], base: Sequence[Passage], *, source_key: str
) -> dict[str, Passage | None]:
    """Return, for each passage that is not in a base any more, what stands in its place.

    That is the passage of the same text, or else of the same source (`metadata[source_key]`),
    where that names one passage before and one now; None for one that is gone. A passage that
    only lacks metadata which a retriever had added, a score for instance, has not changed.
    """
    ids, by_text = {p.id for p in base}, {p.text: p for p in base}
    before, now = _by_source(known.values(), source_key), _by_source(base, source_key)
    found: dict[str, Passage | None] = {}
    for passage in known.values():
        same = by_text.get(passage.text)
        if passage.id in ids or (same is not None and _is_part(same, passage)):
            continue
        source = str(passage.metadata.get(source_key, ""))
        is_named = len(before.get(source, ())) == len(now.get(source, ())) == 1
        found[passage.id] = same or (now[source][0] if is_named else None)
    return found


def _by_source(passages: Iterable[Passage], key: str) -> dict[str, list[Passage]]:
    """Group passages by source; those of one text count once."""
    groups: dict[str, dict[str, Passage]] = {}
    for passage in passages:
        if passage.metadata.get(key) is not None:
            groups.setdefault(str(passage.metadata[key]), {})[passage.text] = passage
    return {source: list(group.values()) for source, group in groups.items()}


def _is_part(one: Passage, other: Passage) -> bool:
    return all(other.metadata.get(k) == v for k, v in one.metadata.items())
