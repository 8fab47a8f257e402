"""What happens after the answer: new KV is kept, clusters are filled, new ones grow.

Copying KV out of the running sequence is the only part that a request waits for; everything
else runs behind it in a queue.
"""

import logging
from collections.abc import Mapping, Sequence

from centroidkv.error_kinds import kind_of
from centroidkv.kv.blocks import BLOCK_TOKENS, Piece, block_id, chain
from centroidkv.kv.manifest import PrefixRow
from centroidkv.plan_config import PlanConfig
from centroidkv.precision.approval import open_namespace
from centroidkv.protocols import CausalModel, RunningSequence
from centroidkv.routing.growth import domain_near, grow
from centroidkv.routing.history import History, Seen
from centroidkv.routing.plan import Plan
from centroidkv.routing.projection import identity
from centroidkv.routing.router import Router
from centroidkv.serving.answered import Answered
from centroidkv.serving.drafts import DraftStore
from centroidkv.serving.outcome import Layout
from centroidkv.serving.redacting import Redactor
from centroidkv.store import Store
from centroidkv.types import Cluster, Drafts, Outcome, Passage, Prompt, Record, Usage
from centroidkv.versions.domain_budgets import DomainBudgets
from centroidkv.versions.figures import FigureFile
from centroidkv.versions.fitting import fit_plan
from centroidkv.versions.in_force import Versions

_log = logging.getLogger("centroidkv")

# What a prompt that waits to be learnt from takes for each token, besides KV: ids, offsets, text.
TOKEN_BYTES = 80

__all__ = ["Learner"]


class Learner:
    """Keeps what requests computed, and grows clusters from questions no cluster admitted."""

    def __init__(
        self,
        store: Store,
        router: Router,
        model: CausalModel,
        versions: Versions,
    ) -> None:
        self.namespace = open_namespace(store, model)
        self.kv_precision = store.precisions[model.fingerprint].name
        self.versions = versions
        self.store = store
        self.router = router
        self._model = model
        self.redactor = Redactor(store.config.redact, self._count)
        self._budgets = DomainBudgets(store.blocks.disk.manifest, self.namespace)
        self.history: History | None = None
        self.figures: FigureFile | None = None
        self._drafts: DraftStore | None = None
        if not store.read_only:
            self.history = store.open_history(versions.namespace)
            self.figures = FigureFile(
                store.path, quarantine=store.path / "quarantine", files=store.files
            )
            if store.config.drafts and model.grid_tokens == 1:
                self._drafts = store.open_drafts(self.namespace)

    def close(self) -> None:
        for file in (self.history, self.figures, self._drafts):
            if file is not None:
                file.close()

    def drafts(self, prompt: tuple[int, ...], record: Record | None) -> Drafts | None:
        """Return what the answer to a prompt may be guessed from."""
        if self._drafts is not None:
            return self._drafts.find(prompt, self._scope(record))
        return Drafts(prompt) if self.store.config.drafts else None  # of a read-only store

    def _scope(self, record: Record | None) -> str:
        """Name the cluster whose answers are alike, "" for none."""
        if record is None or record.cluster is None:
            return ""
        return f"{record.route.plan}/{record.cluster.id}"

    def fault(self, counter: str, error: Exception) -> None:
        """Count an internal fault and say so."""
        _log.warning("the request goes on without the cache: %s", kind_of(error))
        self._count([counter])

    def count(self, usage: Usage) -> None:
        """Count a request by outcome and reason, and apart by plan version and model."""
        self._count(["requests", f"outcome_{usage.outcome}", f"reason_{usage.reason}"])
        figures = self.figures
        if figures is not None and usage.outcome != "bypass":
            self.store.writer.submit(lambda: figures.add(usage, model=self.namespace))

    def tally(self, counter: str) -> None:
        """Count something that befell a request."""
        self._count([counter])

    def _count(self, names: list[str]) -> None:
        if not self.store.read_only:
            self.store.writer.submit(lambda: self.store.blocks.disk.manifest.count(names))

    def after(self, answered: Answered, sequence: RunningSequence) -> int:
        """Keep the new KV of an answered request; return how many tokens that are."""
        if self.store.read_only:
            return 0
        usage = answered.usage
        self.count(usage)
        pieces: list[Piece] = []
        # An arena may have held more of the prompt than the store does.
        stored = min(answered.sound, answered.match.num_tokens)
        kept = answered.prompt.token_ids
        if answered.exact_tokens is not None:
            kept = kept[: answered.exact_tokens]
        elif self._model.grid_tokens > 1:
            kept = self._on_grid(kept)
        elif answered.is_conversation:
            # The last token decoded has no KV: it was never run.
            kept = (*kept, *answered.answer)[: sequence.num_tokens]
        if answered.storable_tokens is not None:
            kept = self._on_grid(kept[: answered.storable_tokens])
        given = max(stored, answered.handed_on)
        if self.keeps(usage.outcome, answered.is_conversation) and len(kept) > given:
            pieces = self.cut(kept, sequence, start=given)
            self.store.blocks.keep(pieces)
        size = sum(p.block.num_bytes for p in pieces) + TOKEN_BYTES * len(answered.prompt)
        queued = self.store.writer.submit(lambda: self._later(answered, pieces), num_bytes=size)
        if not queued:
            return max(0, answered.handed_on - stored)
        return len(kept) - stored if pieces else given - stored

    @staticmethod
    def keeps(outcome: Outcome, is_conversation: bool) -> bool:  # noqa: FBT001
        """Tell whether the KV of such an answer is kept; what is only a question is not."""
        return is_conversation or outcome in ("miss", "partial")

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

    def _on_grid(self, token_ids: tuple[int, ...]) -> tuple[int, ...]:
        """Return the part of a prompt whose KV may be kept."""
        return token_ids[: len(token_ids) - len(token_ids) % self._model.grid_tokens]

    def _later(self, answered: Answered, pieces: list[Piece]) -> None:
        blocks = self.store.blocks
        if not answered.handed_on:  # else they were when it began
            blocks.touch([s.id for s in answered.match.steps])
        record = answered.record if answered.record and answered.record.passages else None
        try:
            if pieces and not self._has_room(answered, pieces[0].token_bytes):
                blocks.disk.manifest.count(["over_domain_budget"])
                pieces = []
            blocks.persist(pieces)
        finally:
            is_storable = answered.storable_tokens is None
            if self._drafts is not None and answered.answer and is_storable:
                scope = self._scope(answered.record)
                self._drafts.keep(answered.prompt.token_ids, scope, answered.answer)
            if record is not None:
                self._remember(record)
                plan = self.router.plan_of(record.route) or self.router.plan
                cluster = self._cluster_of(record)
                token_bytes = pieces[0].token_bytes if pieces else answered.token_bytes
                has_kv = token_bytes and self._has_room(answered, token_bytes)
                if plan and cluster and has_kv:
                    self.fill(plan, cluster, answered.storable, answered.where)

    def _has_room(self, answered: Answered, token_bytes: int) -> bool:
        return self.has_room(answered.record, answered.prompt, answered.where, token_bytes)

    def has_room(
        self, record: Record | None, prompt: Prompt, where: Layout, token_bytes: int
    ) -> bool:
        """Tell whether the domain of the cluster that a request began with may store its KV."""
        if record is None or not record.passages:
            return True
        plan, cluster = self.router.plan_of(record.route), self._cluster_of(record)
        if plan is None or cluster is None:
            return True
        return self._budgets.has_room(
            plan,
            cluster,
            prompt.token_ids[: where.pins_end or None],
            bytes_per_token=token_bytes,
        )

    def _cluster_of(self, record: Record) -> Cluster | None:
        """Return the cluster whose pins, or first pins, this request's prompt began with."""
        plan = self.router.plan_of(record.route) or self.router.plan
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
        manifest = self.store.blocks.disk.manifest
        links = chain(self.namespace, self._on_grid(prompt.token_ids))
        if not links:
            return False
        end = min(where.pins_end or len(prompt), links[-1].stop)
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
        self.router.annotate(cluster.id, known, plan=plan.id)
        return True

    # growth

    def remember_built(
        self, seen: Sequence[Seen], passages: Mapping[str, Passage], domains: Mapping[str, str]
    ) -> None:
        """Note the questions that a plan is built from, so that a refit has them."""
        if self.history is not None:
            self.history.add_built(seen, passages, domains)

    def note_passages(self, passages: Sequence[Passage]) -> None:
        """Note passages before their KV is stored, so that it is found by their ids."""
        history = self.history
        if history is not None:
            self.store.writer.submit(lambda: history.note_passages(passages), wait=True)

    def _remember(self, record: Record) -> None:
        """Note a question; one that was not admitted may found a cluster."""
        route, plan = record.route, self.router.plan
        if self.history is None:
            return
        # In the retriever's order: pins in front would vote for themselves when plans are refitted.
        by_text = {p.text: p.id for p in record.passages}
        ranked = [by_text[t] for t in record.found if t in by_text] or list(by_text.values())
        question = " ".join(self.redactor.masked(record.question).split())
        if not question or route.embedding.size == 0:
            self.history.note_passages(record.passages)
            return
        seen = Seen(question, route.embedding, tuple(ranked), route.domain or "")
        self.history.add(seen, record.passages, is_placed=route.is_admitted)
        # While another version is made ready or tried, nothing grows that it would not have.
        is_calm = self.router.trial is None and (plan is None or route.plan in ("", plan.id))
        if not route.is_admitted and is_calm:
            self._grow({p.id: p for p in record.passages})
        plan = self.router.plan
        if plan is not None and plan.is_online and self.router.trial is None:
            self._fit_when_ready()

    def _grow(self, passages: dict[str, Passage]) -> None:
        with self.versions.files.writing():
            self.versions.follow()  # another process may have grown a cluster meanwhile
            self._grow_from_waiting(passages)

    def _grow_from_waiting(self, passages: dict[str, Passage]) -> None:
        assert self.history is not None
        config, plan = self.store.config, self.router.plan
        if plan is not None and len(plan.clusters) >= config.max_clusters:
            self._count(["clusters_full"])  # those that wait are many then, and not read
            return
        is_online = plan is None or plan.is_online
        waiting = self.history.waiting()
        cluster = grow(
            waiting,
            domain=domain_near(plan, waiting[-1].embedding) if plan and waiting else "",
            cluster_id=len(plan.clusters) if plan else 0,
            min_members=1 if is_online else config.near_misses,
            radius=config.online_radius,
            max_pins=config.max_pins,
        )
        if cluster is None:
            return
        self.history.place([s.question for s in waiting if s.question in cluster.members])
        known = {**self.history.passages(cluster.pins), **passages}
        pinned = {p: known[p] for p in cluster.pins if p in known}
        if plan is None:
            plan = Plan(self.versions.namespace, 0, identity(), (), {}, is_online=True)
            self.versions.put_in_force(plan.grown(cluster, pinned))
        else:
            self.versions.grow(plan.grown(cluster, pinned), cluster)

    def _fit_when_ready(self) -> None:
        """Replace the grown plan by a fitted one, once enough questions were seen."""
        assert self.history is not None
        config = self.store.config
        if self.history.count() < config.fit_after:
            return
        named = config.plan_settings(self._model.context_tokens)
        seen = self.history.all()
        ids = {p for s in seen for p in s.passages}
        fitted = fit_plan(
            seen,
            self.history.passages(sorted(ids)),
            PlanConfig.of({"max_pins": config.max_pins, **named}),
            namespace=self.versions.namespace,
            count_tokens=self._model.count_tokens,
        )
        if self.versions.put_in_force(fitted):
            _log.info("a plan was fitted from %d questions seen", len(seen))
