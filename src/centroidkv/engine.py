"""The engine: one store, one model, one embedder, one tenant. The package's front door.

Offline: `build` makes the plan, `warm` fills it. Online: the retriever wrapper calls `route` and
`compose`, the model adapter calls `generate` or `stream`; what happens in between stands in
`answering.py`, in numbered steps.
"""

import time
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, Self, TypedDict, Unpack

from centroidkv.answering import Answering, Request, model_namespace
from centroidkv.answers import AnswerStore
from centroidkv.build import BuildReport, clean_questions, fit_plan
from centroidkv.config import EngineConfig, PlanConfig, Sampling
from centroidkv.errors import ConfigError
from centroidkv.kv.blocks import namespace_id
from centroidkv.learning import Learner
from centroidkv.maintenance import CheckReport, StoreStats, check_store, store_stats
from centroidkv.opening import as_messages, open_embedder, open_model
from centroidkv.prefetching import Prefetcher
from centroidkv.progress import no_progress, progress_bar
from centroidkv.protocols import CausalModel, Embedder
from centroidkv.retrieval import deep_retrieve
from centroidkv.routing.history import Seen
from centroidkv.routing.records import RecordRing
from centroidkv.routing.router import Router
from centroidkv.store import Store
from centroidkv.types import (
    Chunk,
    Completion,
    Message,
    Passage,
    Record,
    Reuse,
    Route,
    valid_text,
)
from centroidkv.warm import AsyncInvoke, Invoke, Warmer, WarmReport
from centroidkv.warming import current_warming

__all__ = ["Engine", "SamplingOptions"]

DEFAULT_MODEL = "bundled:smollm2"
DEFAULT_EMBEDDER = "bundled:minilm"


class SamplingOptions(TypedDict, total=False):
    """How an answer is decoded; see `Sampling`."""

    max_tokens: int
    temperature: float
    top_p: float
    seed: int | None
    stop: Sequence[str]


class Engine:
    """Cluster-routed KV reuse over one store. A context manager; safe for many threads."""

    def __init__(self, store: Store, model: CausalModel, embedder: Embedder) -> None:
        self.store = store
        self.model = model
        self.config = store.config
        self.router = Router(embedder, store.open_index)
        self._plan_namespace = namespace_id("plan", embedder.fingerprint, self.config.tenant)
        self._records = RecordRing(self.config.max_records)
        self._learner = Learner(
            store,
            self.router,
            model,
            namespace=model_namespace(model, self.config.tenant),
            plan_namespace=self._plan_namespace,
        )
        self._answering = Answering(model, store.blocks, self._records, self._learner)
        self._prefetcher = Prefetcher(store, self._learner)
        self._answers: AnswerStore | None = None
        self._is_closed = False
        self._load_plan()

    @classmethod
    def open(
        cls,
        path: str | Path,
        *,
        model: Any = DEFAULT_MODEL,
        tokenizer: Any = None,
        embedder: Any = DEFAULT_EMBEDDER,
        **settings: Any,
    ) -> Self:
        """Open a store, or create one in a new or empty folder.

        Args:
            path: The store folder.
            model: `bundled:smollm2`, a model folder, a `.gguf` file, a hub id, or a loaded model.
            tokenizer: Only with a loaded model.
            embedder: `bundled:minilm`, a folder, a hub id, or a loaded SentenceTransformer.
            **settings: See `EngineConfig`.

        Raises:
            ConfigError: A setting is unknown or out of range.
            StoreError: The path is no store and cannot become one.
            ModelError: The model or the embedder cannot be loaded.
        """
        config = EngineConfig.of(settings)
        loaded_embedder = open_embedder(embedder, config)
        loaded_model = open_model(model, tokenizer, config)
        return cls(Store.open(path, config), loaded_model, loaded_embedder)

    # offline

    def build(
        self,
        *,
        questions: Iterable[str],
        retriever: Any,
        domains: Iterable[str] | None = None,
        show_progress: bool = False,
        **settings: Any,
    ) -> BuildReport:
        """Cluster past questions and choose what each cluster pins.

        Args:
            questions: Past questions; blank and repeated ones are dropped.
            retriever: The user's retriever: LangChain, LlamaIndex, or a function.
            domains: The questions' domains, where known.
            show_progress: Draw a progress bar.
            **settings: See `PlanConfig`.

        Raises:
            ConfigError: No questions, an unknown setting, or not a retriever.
        """
        begin = time.perf_counter()
        self.store.require_writable("build a plan")
        config = PlanConfig.of(settings)
        asked = clean_questions(questions, domains)
        retrieve = deep_retrieve(retriever)
        progress = progress_bar() if show_progress else no_progress
        vectors = self.router.embedder.embed(list(asked))
        seen: list[Seen] = []
        passages: dict[str, Passage] = {}
        for done, (question, vector) in enumerate(zip(asked, vectors, strict=True)):
            progress("retrieve", done, len(asked))
            found = list(retrieve(question, config.retrieval_depth))[: config.retrieval_depth]
            passages.update((p.id, p) for p in found)
            seen.append(Seen(question, vector, tuple(p.id for p in found)))
        progress("retrieve", len(asked), len(asked))
        current = self.router.plan
        plan = fit_plan(
            seen,
            passages,
            config,
            namespace=self._plan_namespace,
            version=self._learner.next_version(),
            count_tokens=self.model.count_tokens,
            domains=asked,
        )
        is_new = current is None or not plan.is_same_as(current)
        if is_new:
            self.store.plans.save(plan)
            self.router.use(plan)
        in_force = self.router.plan or plan
        return BuildReport(
            num_questions=len(asked),
            num_clusters=len(in_force.clusters),
            num_passages=len(in_force.passages),
            plan_id=in_force.id,
            is_new=is_new,
            seconds=time.perf_counter() - begin,
        )

    def warm(self, invoke: Invoke, *, show_progress: bool = False) -> WarmReport:
        """Run two members of each cluster through a chain and store their common prefix.

        `invoke` takes a question and runs the whole chain, e.g. `chain.invoke`. Nothing is
        answered. Can be interrupted and called again: filled clusters are skipped.
        """
        self.store.require_writable("warm clusters")
        warmer = Warmer(self.store, self.router, self.model, self._learner)
        return warmer.warm(invoke, progress_bar() if show_progress else no_progress)

    async def awarm(self, invoke: AsyncInvoke, *, show_progress: bool = False) -> WarmReport:
        """Do what `warm` does with an async chain, e.g. `chain.ainvoke`."""
        self.store.require_writable("warm clusters")
        warmer = Warmer(self.store, self.router, self.model, self._learner)
        return await warmer.awarm(invoke, progress_bar() if show_progress else no_progress)

    # online: retrieval

    def route(self, question: str) -> Route:
        """Send a question to its cluster, and start loading the cluster's KV."""
        self._require_open()
        run = current_warming()
        route = self.router.route(valid_text(question))
        plan = self.router.plan
        if run is None and route.is_admitted and route.cluster is not None and plan is not None:
            self._prefetcher.begin(plan.id, route.cluster.id)
        return route

    def compose(self, route: Route, found: Sequence[Passage]) -> list[Passage]:
        """Order passages for the prompt and note them for the model.

        The cluster's pinned passages come first, in canonical order, then those of `found` that
        are not among them. Nothing found is lost.
        """
        run = current_warming()
        pinned: list[Passage] = []
        plan = self.router.plan
        if run is not None:
            pinned, found = run.pinned, []
        elif route.is_admitted and route.cluster is not None and plan is not None:
            pinned = plan.pinned(route.cluster)
        # By text, since a retriever that writes scores into the metadata changes every id.
        first = {p.text for p in pinned}
        passages = [*pinned, *(p for p in found if p.text not in first)]
        self._records.put(
            Record(
                question=route.question,
                route=route,
                passages=tuple(passages),
                num_pins=len(pinned),
                found=frozenset(p.text for p in found),
                time_s=time.time(),
            )
        )
        return passages

    @property
    def is_warming(self) -> bool:
        """Whether this call is part of a warming run."""
        return current_warming() is not None

    # online: answers

    def generate(
        self,
        prompt: str | Sequence[Message],
        *,
        question: str | None = None,
        reuse: Reuse = "exact",
        chat_template: bool = True,
        **options: Unpack[SamplingOptions],
    ) -> Completion:
        """Answer a prompt, reusing the KV of its longest stored prefix.

        Args:
            prompt: A text, which becomes one user message, or messages.
            question: The question in it, if the caller knows.
            reuse: `exact` or `off`.
            chat_template: Whether plain text is wrapped by the model's chat template.
            **options: See `Sampling`.

        Raises:
            ConfigError: An argument is wrong.
            ContextTooLong: The prompt does not fit into the model's context.
        """
        chunks = self.stream(
            prompt, question=question, reuse=reuse, chat_template=chat_template, **options
        )
        *_, last = chunks
        assert last.completion is not None
        return last.completion

    def stream(
        self,
        prompt: str | Sequence[Message],
        *,
        question: str | None = None,
        reuse: Reuse = "exact",
        chat_template: bool = True,
        **options: Unpack[SamplingOptions],
    ) -> Iterator[Chunk]:
        """Answer piece by piece; the last chunk carries the completion. Closing it stops."""
        sampling = Sampling.of(options)
        self._require_open()
        return self._answering.stream(
            Request(as_messages(prompt), sampling, question, reuse, chat_template)
        )

    @property
    def answers(self) -> AnswerStore:
        """Answers kept for answer caches, of this embedder and tenant; opened on first use."""
        if self._answers is None:
            self.store.require_writable("keep answers")
            self._answers = AnswerStore(self.store.path, self._plan_namespace)
        return self._answers

    # care

    def stats(self) -> StoreStats:
        """Return counts, sizes and counters of the store."""
        self.flush()
        return store_stats(self.store)

    def check(self, *, repair: bool = False) -> CheckReport:
        """Verify every block, manifest row, plan and centroid; with `repair`, mend what can be."""
        self.flush()
        return check_store(self.store, repair=repair, router=self.router)

    def flush(self) -> None:
        """Wait until everything learnt so far is on disk."""
        self.store.writer.flush()

    def close(self) -> None:
        """Finish writing and release files. Safe to call twice."""
        if self._is_closed:
            return
        self._is_closed = True
        self._prefetcher.close()
        self.store.writer.close()
        self.router.close()
        self._learner.close()
        if self._answers is not None:
            self._answers.close()
        self.store.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    def __repr__(self) -> str:
        return f"Engine({str(self.store.path)!r})"

    def _require_open(self) -> None:
        if self._is_closed:
            raise ConfigError("the engine is closed; open it again with Engine.open(...)")

    def _load_plan(self) -> None:
        plan, problems = self.store.plans.latest(self._plan_namespace)
        for problem in problems:
            self._learner.fault("damaged_plans", problem)
        if plan is not None:
            self.router.use(plan)
        elif self.store.plans.files() and not problems:
            self._learner.note_foreign_plans()
