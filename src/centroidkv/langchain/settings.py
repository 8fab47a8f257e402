"""What the LangChain models have in common: their settings and the way to the engine."""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Self

from langchain_core.callbacks import AsyncCallbackManagerForLLMRun, CallbackManagerForLLMRun
from pydantic import BaseModel, ConfigDict, Field, PrivateAttr, model_validator

from centroidkv.engine import Engine
from centroidkv.errors import ConfigError
from centroidkv.types import Chunk, Completion, Message, Reuse

QUESTION_KEY = "centroidkv_question"
_PER_CALL = {"max_tokens", "temperature", "top_p", "seed", "question", "reuse"}

__all__ = ["QUESTION_KEY", "ModelSettings", "answer_info"]


class ModelSettings(BaseModel):
    """Constructor fields of both models.

    Give an `engine`, or `model` and `store` to open one. Unknown arguments are errors: each
    model says so itself, since LangChain's own settings go before those of this class.
    """

    model_config = ConfigDict(arbitrary_types_allowed=True)

    engine: Engine | None = Field(default=None, exclude=True, repr=False)
    model: str | None = None
    store: str | None = None
    embedder: str = "bundled:minilm"
    max_tokens: int | None = 256
    temperature: float | None = 0.0
    top_p: float = 1.0
    seed: int | None = None
    stop: list[str] | None = None
    reuse: Reuse = "exact"
    _owned: Engine | None = PrivateAttr(default=None)

    @model_validator(mode="after")
    def _open_engine(self) -> Self:
        name = type(self).__name__
        if self.engine is None:
            if not self.store:
                raise ConfigError(f"{name} needs engine=..., or model=... and store=...")
            model = self.model or "bundled:smollm2"
            self._owned = Engine.open(self.store, model=model, embedder=self.embedder)
        elif self.model or self.store:
            raise ConfigError(f"give {name} either engine=... or model=... and store=...")
        return self

    @property
    def kv(self) -> Engine:
        """The engine behind this model."""
        engine = self.engine or self._owned
        assert engine is not None
        return engine

    def identity(self) -> dict[str, Any]:
        """Return what answers depend on; response caches are keyed by it."""
        return {
            "model": self.kv.model.fingerprint,
            "max_tokens": self.max_tokens,
            "temperature": self.temperature,
            "top_p": self.top_p,
            "seed": self.seed,
            "stop": self.stop,
        }

    def chunks(
        self,
        prompt: str | Sequence[Message],
        stop: list[str] | None,
        run_manager: CallbackManagerForLLMRun | AsyncCallbackManagerForLLMRun | None,
        options: Mapping[str, Any],
        *,
        chat_template: bool = True,
    ) -> Iterator[Chunk]:
        """Start an answer; per-call arguments go before the constructor's.

        Raises:
            ConfigError: An argument is unknown.
        """
        unknown = sorted(set(options) - _PER_CALL)
        if unknown:
            known = ", ".join(sorted(_PER_CALL))
            raise ConfigError(f"unknown argument {', '.join(unknown)}; per call known: {known}")
        metadata = (run_manager.metadata if run_manager else None) or {}
        max_tokens = options.get("max_tokens", self.max_tokens)
        return self.kv.stream(
            prompt,
            question=options.get("question") or metadata.get(QUESTION_KEY),
            reuse=options.get("reuse", self.reuse),
            chat_template=chat_template,
            max_tokens=256 if max_tokens is None else max_tokens,
            temperature=options.get("temperature", self.temperature) or 0.0,
            top_p=options.get("top_p", self.top_p),
            seed=options.get("seed", self.seed),
            stop=stop if stop is not None else (self.stop or []),
        )


def answer_info(completion: Completion) -> dict[str, Any]:
    """Return what is said of an answer besides its text."""
    return {
        "finish_reason": completion.finish_reason,
        "usage": completion.usage.as_dict(),
        "token_ids": list(completion.token_ids),
        "margins": list(completion.margins),
    }
