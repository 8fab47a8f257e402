"""Two models over one store: one in force, one on trial for a share of the questions.

The plans are shared, since they belong to the embedder; the KV is not, since each model has a
namespace of its own. To the adapters a trial is an engine like any other.
"""

from collections.abc import Iterator, Sequence
from typing import Any, Self, Unpack

from centroidkv.engine import Engine
from centroidkv.errors import ConfigError
from centroidkv.opening import as_messages, open_model
from centroidkv.protocols import CausalModel
from centroidkv.routing.share import is_in_share
from centroidkv.serving.question import question_from
from centroidkv.serving.request import RequestOptions, user_text_of
from centroidkv.serving.warming import current_warming
from centroidkv.types import Chunk, Message, Passage, Route
from centroidkv.versions.figures import Figures, read_figures
from centroidkv.versions.in_force import require_share

__all__ = ["ModelTrial"]


class ModelTrial(Engine):
    """The engine of a new model that answers a share of the questions; `engine` answers the rest.

    A question always meets the same model. `warm` fills the clusters for the new one. Close it
    before `engine`.
    """

    def __init__(self, engine: Engine, model: CausalModel, *, share: float) -> None:
        if model.fingerprint == engine.model.fingerprint:
            raise ConfigError("the model on trial is the one in force already; give another one")
        if model.tool_format != engine.model.tool_format:
            raise ConfigError(
                "the model on trial writes tool calls in another form than the one in force, so "
                "one chain cannot serve both; compare them with a chain each"
            )
        super().__init__(
            engine.store.for_tenant(engine.config.tenant), model, engine.router.embedder
        )
        self.engine = engine
        self.share = share
        self._opener = self

    @classmethod
    def begin(
        cls, engine: Engine, model: Any, *, tokenizer: Any = None, share: float = 0.1
    ) -> Self:
        """Load a model and let it answer a share of an open engine's questions.

        Args:
            engine: The engine of the model in force; it stays usable alone.
            model: As for `Engine.open`.
            tokenizer: Only with a loaded model.
            share: Part of the questions, in (0, 1).

        Raises:
            ConfigError: The share is out of range, or the models cannot share a chain.
            ModelError: The model cannot be loaded.
        """
        require_share(share)
        return cls(engine, open_model(model, tokenizer, engine.config), share=share)

    def _of_tenant(self, tenant: str, ttl_s: float | None) -> Engine:
        own = self.engine.for_tenant(tenant, ttl_s=ttl_s)
        other = ModelTrial(own, self.model, share=self.share)
        other._tenants, other._opener = self._tenants, self._opener
        return other

    # the same methods, sent to one of the two

    def _serves(self, question: str) -> bool:
        """Tell whether the model on trial answers a question."""
        salt = self._learner.namespace
        is_tried = is_in_share(question, self._opener.share, salt=salt)
        return current_warming() is not None or is_tried

    def route(self, question: str, *, domain: str | None = None) -> Route:
        if isinstance(question, str) and not self._serves(question):
            self._require_open()
            return self.engine.route(question, domain=domain)
        return super().route(question, domain=domain)

    def compose(self, route: Route, found: Sequence[Passage]) -> list[Passage]:
        if self._serves(route.question):
            return super().compose(route, found)
        return self.engine.compose(route, found)

    def pinned(self, route: Route, found: Sequence[Passage] | None = None) -> list[Passage]:
        if self._serves(route.question):
            return super().pinned(route, found)
        return self.engine.pinned(route, found)

    def stream(
        self, prompt: str | Sequence[Message], **options: Unpack[RequestOptions]
    ) -> Iterator[Chunk]:
        messages = as_messages(prompt)
        if self._serves(self._question_in(messages, options)):
            return super().stream(messages, **options)
        self._require_open()
        return self.engine.stream(messages, **options)

    def _question_in(self, prompt: str | Sequence[Message], options: RequestOptions) -> str:
        """Return the question as the retriever had it, else as it can be found in the prompt."""
        text = user_text_of(prompt)
        records = (self._records.find(text), self.engine._records.find(text))
        latest = max((r for r in records if r is not None), key=lambda r: r.time_s, default=None)
        if latest is not None:
            return latest.question
        return str(options.get("question") or question_from(text))

    # the decision

    def figures(self) -> dict[str, list[Figures]]:
        """Return what requests cost, by model fingerprint; one row per plan version."""
        self._require_open()
        self.flush()
        rows = read_figures(self.store.path)
        return {
            engine.model.fingerprint: [f for f in rows if f.model == engine._learner.namespace]
            for engine in (self.engine, self)
        }

    def promote(self) -> None:
        """Let the new model answer everything; open the store with it from now on."""
        self._opener.share = 1.0

    def rollback(self) -> None:
        """Let the model in force answer everything again. The new one's KV stays."""
        self._opener.share = 0.0
