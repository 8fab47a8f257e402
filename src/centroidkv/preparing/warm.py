"""Warming: two member questions of each cluster go through the user's own chain.

Only the chain renders the very tokens that later requests will send. What the two prompts share
is the cluster's prefix; it is prefilled and stored. No answer is decoded.
"""

import inspect
import logging
import time
from collections import Counter
from collections.abc import Awaitable, Callable, Collection, Iterator
from dataclasses import dataclass, field, replace
from typing import Any, TypeAlias

from centroidkv.error_kinds import kind_of
from centroidkv.errors import ConfigError
from centroidkv.kv.blocks import block_id
from centroidkv.protocols import CausalModel, Progress
from centroidkv.routing.plan import Plan
from centroidkv.serving.learning import Learner
from centroidkv.serving.outcome import Layout
from centroidkv.serving.sharing import claimed, first_missing, path_of, persist, wait_for
from centroidkv.serving.single_flight import Flight
from centroidkv.serving.warming import WarmingRun, warming
from centroidkv.store import Store
from centroidkv.types import Cluster, Prompt, common_prefix
from centroidkv.versions.domain_budgets import DomainBudgets, by_worth, full_budget

_log = logging.getLogger("centroidkv")

Invoke: TypeAlias = Callable[[str], Any]
AsyncInvoke: TypeAlias = Callable[[str], Awaitable[Any]]

__all__ = ["WarmReport", "Warmer"]


@dataclass(frozen=True, slots=True)
class WarmReport:
    """What warming did: clusters filled now, filled before, and why the others were not.

    Of those filled now, `found` had their KV under another cluster or plan version already.
    `domain_bytes` is what the clusters of each domain with a budget have on disk.
    """

    num_clusters: int
    filled: int
    already_filled: int
    problems: dict[str, int]
    stored_tokens: int
    seconds: float
    found: int = 0
    domain_bytes: dict[str, int] = field(default_factory=dict)


class Warmer:
    """Fills the clusters of a plan, in force or not yet; `only` the given ones."""

    def __init__(
        self,
        store: Store,
        plan: Plan | None,
        model: CausalModel,
        learner: Learner,
        only: Collection[int] | None = None,
    ) -> None:
        self._store = store
        self._plan = plan
        self._model = model
        self._learner = learner
        self._only = only
        self._budgets = DomainBudgets(store.blocks.disk.manifest, learner.namespace)
        self._bytes_per_token = 0
        self._counts: Counter[str] = Counter()
        self._problems: Counter[str] = Counter()
        self._said: dict[str, str] = {}  # of problems, as logs may have them

    def warm(self, invoke: Invoke, progress: Progress) -> WarmReport:
        """Fill every cluster by running `invoke(question)` for two of its members.

        Raises:
            ConfigError: There is no plan, or the chain is async.
        """
        begin = time.perf_counter()
        for question, run in self._visits(progress):
            returned: Any = None
            try:
                with warming(run):
                    returned = invoke(question)
            except Exception as error:  # noqa: BLE001 - it is the user's chain
                self._failed(run.cluster, error)
            if inspect.iscoroutine(returned):
                returned.close()
                raise ConfigError("the chain is async; use: await engine.awarm(chain.ainvoke)")
        return self._report(begin)

    async def awarm(self, invoke: AsyncInvoke, progress: Progress) -> WarmReport:
        """Do the same with an async chain."""
        begin = time.perf_counter()
        for question, run in self._visits(progress):
            try:
                with warming(run):
                    await invoke(question)
            except Exception as error:  # noqa: BLE001 - it is the user's chain
                self._failed(run.cluster, error)
        return self._report(begin)

    def _visits(self, progress: Progress) -> Iterator[tuple[str, WarmingRun]]:
        """Yield each question to run, with the run that collects its prompt."""
        plan = self._plan
        if plan is None:
            raise ConfigError("there is nothing to warm yet; call build(questions=..., ...) first")
        clusters = [c for c in by_worth(plan) if self._only is None or c.id in self._only]
        for done, cluster in enumerate(clusters):
            progress("warm", done, len(clusters))
            runs = [WarmingRun(cluster, plan.pinned(cluster)) for _ in cluster.members[:2]]
            yield from zip(cluster.members[:2], runs, strict=True)
            self._settle(cluster, runs)
        self._counts["clusters"] = len(clusters)
        progress("warm", len(clusters), len(clusters))

    def _failed(self, cluster: Cluster, error: Exception) -> None:
        reason = f"the chain raised {type(error).__name__}: {error}"
        # The report is the caller's; in a log, the error's text may quote a past question.
        said = f"the chain raised {kind_of(error)}"
        if said not in self._said.values():
            _log.warning("cluster %d could not be warmed: %s", cluster.id, said)
        self._said[reason] = said
        self._problems[reason] += 1

    def _settle(self, cluster: Cluster, runs: list[WarmingRun]) -> None:
        prompts = [p for run in runs for p in run.prompts]
        if not prompts:
            self._problems[_why_nothing(runs)] += 1
            return
        prompt, where = prompts[0]
        if where.is_question_first:
            self._problems["the prompt puts the question before the passages"] += 1
            return
        shared = where.pins_end
        if len(prompts) == 2:
            shared = common_prefix(prompt.token_ids, prompts[1][0].token_ids)
        if shared < where.pins_end:
            self._problems["two questions of a cluster share no prompt up to the pins' end"] += 1
            return
        shared -= shared % self._model.grid_tokens
        if not shared:
            self._problems["the prefix is shorter than the grid of bitwise mode"] += 1
            return
        where = replace(where, pins_end=min(where.pins_end, shared))
        head = Prompt(prompt.text, prompt.token_ids[:shared], prompt.offsets[:shared])
        if self._is_filled(cluster, head, where):
            self._counts["already"] += 1
        elif self._is_found(cluster, head, where):
            self._counts["filled"] += 1
            self._counts["found"] += 1
        elif not self._has_room(cluster, head):
            assert self._plan is not None
            self._problems[full_budget(self._plan, cluster)] += 1
        else:
            self._fill(cluster, head, where)
            self._counts["filled"] += 1

    def _is_filled(self, cluster: Cluster, prefix: Prompt, where: Layout) -> bool:
        assert self._plan is not None
        head = block_id(self._learner.namespace, prefix.token_ids[: where.head])
        rows = self._store.blocks.disk.manifest.prefixes(self._plan.id, cluster.id)
        pointed = any(
            (r.namespace, r.head) == (self._learner.namespace, head) and r.num_tokens for r in rows
        )
        return pointed and self._matched(prefix) >= where.pins_end

    def _is_found(self, cluster: Cluster, prefix: Prompt, where: Layout) -> bool:
        """Point a cluster at KV that is there already, under another plan version or cluster."""
        assert self._plan is not None
        if self._matched(prefix) < where.pins_end:
            return False
        self._store.writer.flush()  # what was filled just before may be the very prefix
        where = replace(where, pins_end=min(where.pins_end, len(prefix)))
        return self._learner.fill(self._plan, cluster, prefix, where)

    def _matched(self, prefix: Prompt) -> int:
        # One token more than the prefix, since a match leaves the last token to compute.
        return self._store.blocks.match(self._learner.namespace, (*prefix.token_ids, 0)).num_tokens

    def _has_room(self, cluster: Cluster, prefix: Prompt) -> bool:
        """Tell whether the budget of the cluster's domain has room for a prefix."""
        plan = self._plan
        assert plan is not None
        if plan.kv_budget_bytes(cluster.domain) is None:
            return True
        # What was stored before this must stand in the manifest to be counted.
        self._store.writer.flush()
        self._bytes_per_token = self._bytes_per_token or self._measured(prefix.token_ids[:1])
        return self._budgets.has_room(
            plan, cluster, prefix.token_ids, bytes_per_token=self._bytes_per_token
        )

    def _measured(self, token_ids: tuple[int, ...]) -> int:
        """Run a token to see how many bytes its KV has."""
        sequence = self._model.open_sequence(len(token_ids) + 1)
        try:
            sequence.prefill(token_ids)
            return sequence.snapshot(0, 1).num_bytes
        finally:
            sequence.close()

    def _fill(self, cluster: Cluster, prefix: Prompt, where: Layout) -> None:
        """Compute a prefix, unless another process does so just now."""
        namespace, held = self._learner.namespace, self._matched(prefix)
        start = claimed(
            self._learner,
            missing=lambda: first_missing(namespace, prefix.token_ids, self._matched(prefix)),
            path=lambda: path_of(namespace, prefix.token_ids),
            look=lambda: None,
            wait_s=wait_for(self._learner, len(prefix) - held, behind=held),
        )
        try:
            if start.has_waited and self._is_found(cluster, prefix, where):
                self._counts["found"] += 1
                start.land()
                return
            self._prefill(cluster, prefix, where, start.flight)
        except BaseException:
            start.land()
            raise

    def _prefill(
        self, cluster: Cluster, prefix: Prompt, where: Layout, flight: Flight | None
    ) -> None:
        blocks, plan = self._store.blocks, self._plan
        assert plan is not None
        sequence = self._model.open_sequence(len(prefix) + 1)
        try:
            match = blocks.match(self._learner.namespace, prefix.token_ids)
            match = match.on_grid(self._model.grid_tokens)
            for step in match.steps:
                block = blocks.get(step.id)
                if block is None:
                    break
                sequence.restore([block.part(0, step.stop - step.start)])
            start = sequence.num_tokens
            sequence.prefill(prefix.token_ids[start:])
            pieces = self._learner.cut(prefix.token_ids, sequence, start=start)
        finally:
            sequence.close()
        blocks.keep(pieces)
        self._counts["tokens"] += len(prefix) - start
        where = replace(where, pins_end=min(where.pins_end, len(prefix)))

        def write() -> None:
            try:
                persist(self._learner, pieces, flight)
            finally:
                if flight is not None:
                    flight.land()
            self._learner.fill(plan, cluster, prefix, where)

        # The disk writes one cluster while the next one is computed; warming waits for it rather
        # than lose a write, since it makes more KV than the queue should hold.
        size = sum(p.block.num_bytes for p in pieces)
        self._store.writer.submit(write, num_bytes=size, wait=True)

    def _report(self, begin: float) -> WarmReport:
        self._store.writer.flush()
        total = self._counts["clusters"]
        said: Counter[str] = Counter()
        for problem, count in self._problems.items():
            said[self._said.get(problem, problem)] += count
        for reason, count in said.items():
            _log.warning("%d of %d clusters not warmed: %s", count, total, reason)
        return WarmReport(
            num_clusters=total,
            filled=self._counts["filled"],
            already_filled=self._counts["already"],
            found=self._counts["found"],
            problems=dict(self._problems),
            stored_tokens=self._counts["tokens"],
            seconds=time.perf_counter() - begin,
            domain_bytes=self._domain_bytes(),
        )

    def _domain_bytes(self) -> dict[str, int]:
        plan = self._plan
        domains = sorted({c.domain for c in plan.clusters}) if plan else []
        return {
            d: self._budgets.used_bytes(plan, d)
            for d in domains
            if plan and plan.kv_budget_bytes(d) is not None
        }


def _why_nothing(runs: list[WarmingRun]) -> str:
    if any(not run.pinned for run in runs):
        return "the cluster has no pinned passages"
    if any(run.other_calls for run in runs):
        return "no prompt held the pinned passages: is the retriever a CentroidKVRetriever?"
    return "the chain never called the model"
