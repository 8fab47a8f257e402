"""What happens after the answer: new KV is kept, clusters are filled, new ones grow.

Copying KV out of the running sequence is the only part that a request waits for; everything
else runs behind it in a queue.
"""

import logging
import threading
from dataclasses import dataclass, replace

from centroidkv.config import PlanConfig
from centroidkv.fitting import fit_plan
from centroidkv.kv.blocks import BLOCK_TOKENS, Match, Piece, block_id, chain
from centroidkv.kv.manifest import PrefixRow
from centroidkv.outcome import Layout
from centroidkv.protocols import CausalModel, RunningSequence
from centroidkv.routing.growth import grow
from centroidkv.routing.history import History, Seen, open_history
from centroidkv.routing.plan import Plan
from centroidkv.routing.projection import identity
from centroidkv.routing.router import Router
from centroidkv.store import Store
from centroidkv.types import Cluster, Passage, Prompt, Record, Usage

_log = logging.getLogger("centroidkv")

__all__ = ["Answered", "Learner"]


@dataclass(frozen=True, slots=True)
class Answered:
    """A request that has been answered, as far as learning from it needs.

    `answer` are the tokens decoded; `is_conversation` that the next prompt may continue it.
    """

    prompt: Prompt
    answer: tuple[int, ...]
    is_conversation: bool
    record: Record | None
    where: Layout
    usage: Usage
    match: Match


class Learner:
    """Keeps what requests computed, and grows clusters from questions no cluster admitted."""

    def __init__(
        self,
        store: Store,
        router: Router,
        model: CausalModel,
        *,
        namespace: str,
        plan_namespace: str,
    ) -> None:
        self.namespace = namespace
        self.plan_namespace = plan_namespace
        self._store = store
        self._router = router
        self._model = model
        self._history: History | None = None
        self._planning = threading.Lock()
        if not store.read_only:
            self._history = open_history(
                store.path / "history.sqlite",
                plan_namespace,
                quarantine=store.path / "quarantine",
            )

    def close(self) -> None:
        if self._history is not None:
            self._history.close()

    def fault(self, counter: str, error: Exception) -> None:
        """Count an internal fault and say so."""
        _log.warning("the request goes on without the cache: %s", error)
        self._count([counter])

    def count(self, usage: Usage) -> None:
        """Count a request by outcome and reason."""
        self._count(["requests", f"outcome_{usage.outcome}", f"reason_{usage.reason}"])

    def _count(self, names: list[str]) -> None:
        if not self._store.read_only:
            self._store.writer.submit(lambda: self._store.blocks.disk.manifest.count(names))

    def note_foreign_plans(self) -> None:
        """Say that the store's plans belong to another embedder or tenant."""
        _log.warning(
            "%s holds plans of another embedder or tenant; questions are not routed until "
            "build() runs with this one, or it is opened with the embedder it was built with",
            self._store.path,
        )

    def after(self, answered: Answered, sequence: RunningSequence) -> int:
        """Keep the new KV of an answered request; return how many tokens that are."""
        if self._store.read_only:
            return 0
        usage = answered.usage
        self.count(usage)
        pieces: list[Piece] = []
        kept = answered.prompt.token_ids
        if answered.is_conversation:
            # The last token decoded has no KV: it was never run.
            kept = (*kept, *answered.answer)[: sequence.num_tokens]
        if answered.is_conversation or usage.outcome in ("miss", "partial"):
            pieces = self.cut(kept, sequence, start=usage.reused_tokens)
            self._store.blocks.keep(pieces)
        size = sum(p.block.num_bytes for p in pieces)
        queued = self._store.writer.submit(lambda: self._later(answered, pieces), num_bytes=size)
        return len(kept) - usage.reused_tokens if pieces and queued else 0

    def cut(
        self, token_ids: tuple[int, ...], sequence: RunningSequence, *, start: int
    ) -> list[Piece]:
        """Copy the blocks out of a sequence that hold its tokens [start, len(token_ids))."""
        border = start - start % BLOCK_TOKENS
        return [
            Piece(
                link.parent,
                token_ids[link.start : link.stop],
                sequence.snapshot(link.start, link.stop),
            )
            for link in chain(self.namespace, token_ids, border)
        ]

    def _later(self, answered: Answered, pieces: list[Piece]) -> None:
        blocks = self._store.blocks
        blocks.touch([s.id for s in answered.match.steps])
        try:
            blocks.persist(pieces)
        finally:
            record = answered.record
            if record is not None and record.passages:
                self._remember(record)
                plan = self._router.plan
                cluster = self._cluster_of(record)
                if pieces and plan is not None and cluster is not None:
                    self.fill(plan, cluster, answered.prompt, answered.where)

    def _cluster_of(self, record: Record) -> Cluster | None:
        """Return the cluster whose pins, or first pins, this request's prompt began with."""
        plan = self._router.plan
        if plan is None:
            return None
        shown = tuple(p.id for p in record.passages)
        if record.cluster is not None:
            shown = shown[: record.num_pins]
            is_its_own = bool(shown) and record.cluster.pins[: len(shown)] == shown
            return record.cluster if is_its_own else None
        for cluster in plan.clusters[-1:]:  # the one that this request founded
            if cluster.pins and shown[: len(cluster.pins)] == cluster.pins:
                return cluster
        return None

    def fill(self, plan: Plan, cluster: Cluster, prompt: Prompt, where: Layout) -> bool:
        """Point a cluster at its prefix on disk (the paper's `M[j*] <- KV`).

        A prompt with only the cluster's first pins leaves a longer prefix that is there alone.
        """
        manifest = self._store.blocks.disk.manifest
        links = chain(self.namespace, prompt.token_ids)
        end = where.pins_end or len(prompt)
        head = block_id(self.namespace, prompt.token_ids[: where.head])
        rows = [
            r
            for r in manifest.prefixes(plan.id, cluster.id)
            if (r.namespace, r.head) == (self.namespace, head)
        ]
        if any(r.num_tokens > end and manifest.has(r.block) for r in rows):
            return False
        link = next((x for x in links if x.stop >= end), links[-1])
        last = link.id
        if not manifest.has(last):
            # A longer block covers this tail.
            rest = prompt.token_ids[link.start : link.stop]
            covering = manifest.neighbours(link.parent, rest)
            last = next((b for b, t in covering if t[: len(rest)] == rest), "")
        if not last:
            return False
        manifest.set_prefix(PrefixRow(plan.id, cluster.id, self.namespace, head, last, end))
        known = {
            f"{r.namespace[-16:]}/{r.head[:16]}": r.block
            for r in manifest.prefixes(plan.id, cluster.id)
        }
        self._router.annotate(cluster.id, known)
        return True

    # growth

    def _remember(self, record: Record) -> None:
        """Note a question; one that was not admitted may found a cluster."""
        route = record.route
        if self._history is None or route.embedding.size == 0:
            return
        ranked = [p.id for p in record.passages]
        seen = Seen(record.question, route.embedding, tuple(ranked))
        self._history.add(seen, record.passages, is_placed=route.is_admitted)
        if not route.is_admitted:
            self._grow({p.id: p for p in record.passages})
        plan = self._router.plan
        if plan is not None and plan.is_online:
            self._fit_when_ready()

    def _grow(self, passages: dict[str, Passage]) -> None:
        with self._planning:
            self._grow_from_waiting(passages)

    def _grow_from_waiting(self, passages: dict[str, Passage]) -> None:
        assert self._history is not None
        config, plan = self._store.config, self._router.plan
        is_online = plan is None or plan.is_online
        waiting = self._history.waiting()
        cluster = grow(
            waiting,
            cluster_id=len(plan.clusters) if plan else 0,
            min_members=1 if is_online else config.near_misses,
            radius=config.online_radius,
            max_pins=config.max_pins,
        )
        if cluster is None:
            return
        self._history.place([s.question for s in waiting if s.question in cluster.members])
        known = {**self._history.passages(cluster.pins), **passages}
        pinned = {p: known[p] for p in cluster.pins if p in known}
        if plan is None:
            version = self._next_version()
            plan = Plan(self.plan_namespace, version, identity(), (), {}, is_online=True)
            plan = plan.grown(cluster, pinned)
            self._store.plans.save(plan)
            self._router.use(plan)
        else:
            plan = plan.grown(cluster, pinned)
            self._store.plans.save(plan)
            self._router.extend(plan, cluster)

    def _fit_when_ready(self) -> None:
        """Replace the grown plan by a fitted one, once enough questions were seen."""
        assert self._history is not None
        if self._history.count() < self._store.config.fit_after:
            return
        seen = self._history.all()
        ids = {p for s in seen for p in s.passages}
        fitted = fit_plan(
            seen,
            self._history.passages(sorted(ids)),
            PlanConfig(max_pins=self._store.config.max_pins),
            namespace=self.plan_namespace,
            count_tokens=self._model.count_tokens,
        )
        if self.put_in_force(fitted):
            _log.info("a plan was fitted from %d questions seen", len(seen))

    # plans

    def put_in_force(self, plan: Plan) -> bool:
        """Save a plan as the next version and route by it; False if it is in force already."""
        with self._planning:
            current = self._router.plan
            if current is not None and plan.is_same_as(current):
                return False
            plan = replace(plan, version=self._next_version())
            self._store.plans.save(plan)
            self._router.use(plan)
            return True

    def _next_version(self) -> int:
        files = self._store.plans.files(self.plan_namespace)
        return 1 + max((int(p.stem.rsplit("-", 1)[1]) for p in files), default=0)
