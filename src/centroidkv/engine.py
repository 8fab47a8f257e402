"""The engine: one store, one model, one embedder, one tenant. The package's front door.

Offline: `build` makes the plan, `warm` fills it. Online: the retriever wrapper calls `route` and
`compose`, the model adapter calls `generate` or `stream`; what happens in between stands in
`answering.py`, in numbered steps.
"""

import contextlib
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, Self, Unpack

from centroidkv.blend.prefill import PassageReport
from centroidkv.care import Care
from centroidkv.config import EngineConfig
from centroidkv.errors import ConfigError, StoreError
from centroidkv.kv.blocks import namespace_id
from centroidkv.kv.holdings import owner_of
from centroidkv.lifetime import Lifetime
from centroidkv.opening import as_messages, open_embedder, open_model
from centroidkv.plan_config import PlanConfig
from centroidkv.policies import Policies
from centroidkv.preparing.build import Builder, BuildReport
from centroidkv.preparing.calibrating import Pairs
from centroidkv.preparing.gathering import gather
from centroidkv.preparing.refit import RefitReport
from centroidkv.preparing.refreshing import RefreshReport
from centroidkv.preparing.upkeep import Upkeep
from centroidkv.preparing.warm import Warmer, WarmReport
from centroidkv.privacy.expiry import Expiry
from centroidkv.privacy.opening import finish_forgetting, open_expiry, open_privacy
from centroidkv.progress import no_progress, progress_bar
from centroidkv.protocols import CausalModel, Embedder
from centroidkv.redaction import Redact
from centroidkv.retrieval import as_invoke
from centroidkv.routing.calibration import Calibration
from centroidkv.routing.domains import DomainSettings
from centroidkv.routing.records import RecordRing
from centroidkv.routing.risk import Bound
from centroidkv.routing.router import Router
from centroidkv.serving.answers import AnswerStore
from centroidkv.serving.learning import Learner
from centroidkv.serving.request import Request, RequestOptions
from centroidkv.serving.retrieving import Retrieving
from centroidkv.serving.warming import current_warming
from centroidkv.store import Store
from centroidkv.tenants import Tenants
from centroidkv.types import Chunk, Completion, Message, Passage, Route
from centroidkv.versions.in_force import Versions

__all__ = ["Engine"]

DEFAULT_MODEL = "bundled:smollm2"
DEFAULT_EMBEDDER = "bundled:minilm"


class Engine(Care):
    """Cluster-routed KV reuse over one store. A context manager; safe for many threads."""

    def __init__(self, store: Store, model: CausalModel, embedder: Embedder) -> None:
        self.store = store
        self.model = model
        self.config = store.config
        self.router = Router(embedder, store.open_index, self._masked)
        self._plan_namespace = namespace_id("plan", embedder.fingerprint, self.config.tenant_key)
        self._records = RecordRing(self.config.max_records)
        self.versions = Versions(store, self._plan_namespace, self.router)
        self._learner = Learner(store, self.router, model, self.versions)
        self._retrieving = Retrieving(store, self.router, self._records, self._learner.namespace)
        self._policies = Policies(model, self._records, self._learner)
        self._answers: AnswerStore | None = None
        self._tenants = Tenants(self.config.tenant, self, self._of_tenant)
        self._lifetime = Lifetime()
        for problem in self.versions.load():
            self._learner.fault("damaged_plans", problem)
        self._privacy = open_privacy(self._learner, model, self._records, self._policies)
        self._expiry = open_expiry(self._privacy, self._learner, model, self._expiries)
        for other in finish_forgetting(self._privacy, self._expiry, store):
            self.for_tenant(other)
        self._retrieving.preload()

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
            embedder: `bundled:minilm`, `bundled:e5-multilingual` (Korean and others), a folder,
                a hub id, or a loaded SentenceTransformer.
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

    def for_tenant(self, tenant: str, *, ttl_s: float | None = None) -> "Engine":
        """Return the engine of another tenant over the same store, model and budgets.

        Nothing that one tenant stored is found for another. The name must come from the server
        that knows who asks, never from the prompt. Asking again gives the same engine. A tenant's
        own `ttl_s` is remembered, also for when nobody opens the tenant any more.

        Raises:
            ConfigError: The tenant is not a string, or is open with another `ttl_s`.
        """
        self._require_open()
        engine = self._tenants.of(tenant, ttl_s)
        held_s = engine.config.ttl_s
        if ttl_s not in (None, held_s):
            raise ConfigError(f"tenant {tenant!r} is open with ttl_s={held_s}; close it first")
        return engine

    def _of_tenant(self, tenant: str, ttl_s: float | None) -> "Engine":
        engine = Engine(self.store.for_tenant(tenant, ttl_s), self.model, self.router.embedder)
        engine._tenants = self._tenants
        engine._expiry.join(self._expiry)
        return engine

    def _expiries(self) -> dict[str, Expiry]:
        return {owner_of(e.config.tenant_key): e._expiry for e in self._tenants.opened()}

    # offline

    def build(
        self,
        *,
        questions: Iterable[str] | None = None,
        retriever: Any,
        chat_log: str | Path | Iterable[str] | None = None,
        redact: Redact | None = None,
        domains: Iterable[str] | None = None,
        domain_settings: DomainSettings | None = None,
        show_progress: bool = False,
        **settings: Any,
    ) -> BuildReport:
        """Cluster past questions and choose what each cluster pins.

        Args:
            questions: Past questions; blank and repeated ones are dropped.
            retriever: The user's retriever: LangChain, LlamaIndex, or a function.
            chat_log: A file of conversations, or their turns; what asks in them is taken.
            redact: Masks a turn of the log before it is stored; default `mask_personal`.
            domains: The questions' domains; one that is "" is learnt from its neighbours.
            domain_settings: By domain: settings of its own and `kv_budget_bytes`.
            show_progress: Draw a progress bar.
            **settings: See `PlanConfig`.

        Raises:
            ConfigError: No questions, an unknown setting, or not a retriever.
        """
        self._require_open()
        self.store.require_writable("build a plan")
        config = PlanConfig.of({**self.config.plan_settings(self.model.context_tokens), **settings})
        if self.config.redact is not None:
            questions = self._learner.redactor.all_masked(questions)
            redact = redact or (self.config.redact if chat_log is not None else None)
        asked = gather(questions, domains, chat_log, redact, self.router.embedder)
        builder = Builder(self.router, self.model, self._learner)
        progress = progress_bar() if show_progress else no_progress
        return builder.build(asked, retriever, config, progress, domain_settings=domain_settings)

    def refit(self, invoke: Any = None, **options: Any) -> RefitReport:
        """Make the next plan version from the questions asked, warm it, switch to it.

        See `Upkeep.refit` for the options; `versions` for trials and for the way back.
        """
        return self._upkeep().refit(invoke, **options)

    def refresh(self, passages: Iterable[Any], invoke: Any = None, **options: Any) -> RefreshReport:
        """Take over a changed knowledge base; make anew what depended on it. See `Upkeep`."""
        return self._upkeep().refresh(passages, invoke, **options)

    def _upkeep(self) -> Upkeep:
        self._require_open()
        return Upkeep(self._learner, self._policies, self.model)

    def calibrate(self, pairs: Pairs, *, past_pairs: Pairs = ()) -> list[Bound]:
        """Learn from labelled pairs when another question's answer may be served.

        What `max_error` needs; kept in the store. Takes a CSV file (question_a, question_b,
        same_answer) or its rows; returns what the labels support. See `fit_calibration`.

        Raises:
            ConfigError: The pairs cannot be used; the message names the line and the remedy.
        """
        self._require_open()
        return self._policies.calibrate(pairs, past_pairs)

    @property
    def calibration(self) -> Calibration | None:
        """What `calibrate` learnt, if it has."""
        return self._policies.representatives.calibration

    def warm(self, invoke: Any, *, show_progress: bool = False) -> WarmReport:
        """Run two members of each cluster through a chain and store their common prefix.

        `invoke` takes a question and runs the whole chain: a function, or an object with
        `invoke`, `query` or `chat`. Nothing is answered. Can be interrupted and called again:
        filled clusters are skipped. With `reuse="representative"` each cluster's representative
        is asked and answered instead.
        """
        progress = progress_bar() if show_progress else no_progress
        warmer, invoke = self._warmer(), as_invoke(invoke, ("invoke", "query", "chat"))
        if self.config.reuse == "representative":
            return self._policies.representative.fill(self.router.plan, invoke, progress)
        return warmer.warm(invoke, progress)

    async def awarm(self, invoke: Any, *, show_progress: bool = False) -> WarmReport:
        """Do what `warm` does with an async chain."""
        warmer, invoke = self._warmer(), as_invoke(invoke, ("ainvoke", "aquery", "achat"))
        return await warmer.awarm(invoke, progress_bar() if show_progress else no_progress)

    def prefill_passages(
        self, invoke: Any, passages: Iterable[Any], *, show_progress: bool = False
    ) -> PassageReport:
        """Compute a knowledge base's passages for `reuse="blend"`. See `BlendAnswering.prefill`."""
        self._require_open()
        return self._policies.blend.prefill(invoke, passages, show_progress=show_progress)

    def _warmer(self) -> Warmer:
        self._require_open()
        self.store.require_writable("warm clusters")
        return Warmer(self.store, self.router.plan, self.model, self._learner)

    # online: retrieval

    def route(self, question: str, *, domain: str | None = None) -> Route:
        """Send a question to its cluster, and start loading the cluster's KV.

        With a `domain` only its clusters are looked at; one that no plan knows admits nothing.

        Raises:
            ConfigError: Question or domain is not a text, or the engine is closed.
        """
        self._require_open()
        self._expiry.look()
        self.versions.look()
        return self._retrieving.route(question, domain)

    def compose(self, route: Route, found: Sequence[Passage]) -> list[Passage]:
        """Order passages for the prompt and note them for the model.

        Pins come first, in canonical order, then what else was found; `pins_by` says whose pins.
        """
        return self._retrieving.compose(route, found)

    def pinned(self, route: Route, found: Sequence[Passage] | None = None) -> list[Passage]:
        """Return what `compose` puts first; without `found`, all pins of the nearest cluster."""
        return self._retrieving.pinned(route, found)

    @property
    def is_warming(self) -> bool:
        """Whether this call is part of a warming run."""
        return current_warming() is not None

    # online: answers

    def generate(
        self, prompt: str | Sequence[Message], **options: Unpack[RequestOptions]
    ) -> Completion:
        """Answer a prompt, reusing the KV of its longest stored prefix.

        Args:
            prompt: A text, which becomes one user message, or messages.
            **options: See `RequestOptions` and `Sampling`.

        Raises:
            ConfigError: An argument is wrong.
            ModelError: The chat template refuses the messages, or knows no tools.
            ContextTooLong: The prompt does not fit into the model's context.
            GenerationTimeout: The answer was not complete within `timeout_s`.
        """
        *_, last = self.stream(prompt, **options)
        assert last.completion is not None
        return last.completion

    def stream(
        self, prompt: str | Sequence[Message], **options: Unpack[RequestOptions]
    ) -> Iterator[Chunk]:
        """Answer piece by piece; the last chunk carries the completion. Closing it stops."""
        request = Request.of(as_messages(prompt), options, reuse=self.config.reuse)
        self._require_open()
        return self._policies.stream(request, self._expiry.look)

    @property
    def answers(self) -> AnswerStore:
        """Answers kept for answer caches, of this embedder and tenant; opened on first use."""
        self._require_open()
        if not self._expiry.look():
            raise StoreError("kept answers are left alone: what is too old cannot be let go of")
        if self._answers is None:
            self.store.require_writable("keep answers")
            self._answers = self.store.open_answers(self._plan_namespace)
        return self._answers

    # the end

    def flush(self) -> None:
        """Wait until everything learnt so far is on disk, and sent to the remote."""
        if not self.is_closed:
            self._require_open()
        self._policies.flush()
        self.store.flush()

    @property
    def is_closed(self) -> bool:
        return self._lifetime.is_over

    def close(self) -> None:
        """Finish writing and release files. Safe to call twice."""
        if not self._lifetime.end():
            return
        parts = [part.close for part in (self._answers, self._learner, self.router) if part]
        # Called from the last to the first, each whatever those before it raise.
        with contextlib.ExitStack() as closing:
            for close in (self.store.close, *parts, self._expiry.finish, self.store.finish):
                closing.callback(close)
            closing.callback(self._policies.close)
            closing.callback(self._tenants.close, self)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def __repr__(self) -> str:
        return f"Engine({str(self.store.path)!r})"

    def _require_open(self) -> None:
        self._lifetime.require()
