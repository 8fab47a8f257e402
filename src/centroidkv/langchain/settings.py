"""What the LangChain models have in common: their settings and the way to the engine."""

from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any, Self, TypeAlias

from langchain_core.caches import BaseCache
from langchain_core.callbacks import AsyncCallbackManagerForLLMRun, CallbackManagerForLLMRun
from langchain_core.runnables import RunnableConfig, ensure_config
from pydantic import BaseModel, ConfigDict, Field, model_validator

from centroidkv.config import Sampling, SamplingOptions
from centroidkv.engine import Engine
from centroidkv.errors import ConfigError
from centroidkv.own_engine import engine_of_fields
from centroidkv.serving.request import require_served
from centroidkv.types import Chunk, Completion, Message, Reuse

QUESTION_KEY = "centroidkv_question"
TENANT_KEY = "centroidkv_tenant"
DOMAIN_KEY = "centroidkv_domain"
_SETTINGS = {"max_tokens", "temperature", "top_p", "seed", "timeout", "reuse"}
_PER_CALL = _SETTINGS | {"question", "tenant"}

RunManager: TypeAlias = CallbackManagerForLLMRun | AsyncCallbackManagerForLLMRun | None

__all__ = ["DOMAIN_KEY", "QUESTION_KEY", "TENANT_KEY", "ModelSettings", "RunManager", "answer_info"]


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
    timeout: float | None = None
    reuse: Reuse | None = None

    if TYPE_CHECKING:
        cache: BaseCache | bool | None  # LangChain's own field

    @model_validator(mode="after")
    def _open_engine(self) -> Self:
        Sampling.of(self.sampling())
        if self.reuse is not None:
            require_served(self.reuse)
        # A field, so that copies which are constructed from the fields share it.
        self.engine = engine_of_fields(
            type(self).__name__,
            self.engine,
            model=self.model,
            store=self.store,
            embedder=self.embedder,
        )
        return self

    @property
    def kv(self) -> Engine:
        """The engine behind this model."""
        assert self.engine is not None
        return self.engine

    def identity(self) -> dict[str, Any]:
        """Return what answers depend on; response caches are keyed by it."""
        return {
            "model": self.kv.model.fingerprint,
            "max_tokens": self.max_tokens,
            "temperature": self.temperature,
            "top_p": self.top_p,
            "seed": self.seed,
            "stop": self.stop,
            "reuse": self.reuse or self.kv.config.reuse,
            "blend_share": self.kv.config.blend_share,
            "template_date": self.kv.config.template_date,
            "kv_precision": self.kv.store.precisions[self.kv.model.fingerprint].name,
            "tenant": self.kv.config.tenant,
        }

    def chunks(
        self,
        prompt: str | Sequence[Message],
        stop: list[str] | None,
        run_manager: RunManager,
        options: Mapping[str, Any],
        **rendering: Any,
    ) -> Iterator[Chunk]:
        """Start an answer; per-call arguments go before the constructor's.

        Args:
            prompt: Text or messages.
            stop: Replaces the constructor's.
            run_manager: Its metadata may name question and tenant.
            options: The arguments of the call.
            **rendering: What `Engine.stream` takes to render the prompt.

        Raises:
            ConfigError: An argument is unknown or out of range.
        """
        unknown = sorted(set(options) - _PER_CALL)
        if unknown:
            known = ", ".join(sorted(_PER_CALL))
            raise ConfigError(f"unknown argument {', '.join(unknown)}; per call known: {known}")
        metadata = (run_manager.metadata if run_manager else None) or {}
        model, rest = self.settled(metadata, options)
        return model.kv.stream(
            prompt,
            question=rest.get("question") or metadata.get(QUESTION_KEY),
            reuse=model.reuse,
            **model.sampling(stop),
            **rendering,
        )

    def sampling(self, stop: list[str] | None = None) -> SamplingOptions:
        """Return how an answer is decoded; `stop` goes before the model's own."""
        return SamplingOptions(
            max_tokens=256 if self.max_tokens is None else self.max_tokens,
            temperature=0.0 if self.temperature is None else self.temperature,
            top_p=self.top_p,
            seed=self.seed,
            timeout_s=self.timeout,
            stop=stop if stop is not None else (self.stop or []),
        )

    def settled(self, metadata: Any, options: Mapping[str, Any]) -> tuple[Self, dict[str, Any]]:
        """Return a copy with a request's settings as its own, and the arguments that are left.

        LangChain keys its answer caches by the model's fields, and for text models by nothing
        else. Only so does no request get the answer to one with other settings, and no tenant
        that of another.

        Raises:
            ConfigError: The requests of one batch belong to several tenants.
        """
        rows = metadata if isinstance(metadata, list) else [metadata]
        tenants = {(row or {}).get(TENANT_KEY) for row in rows}
        if len(tenants) > 1:
            raise ConfigError(f"one call of generate serves one {TENANT_KEY}, not several")
        changed = {name: options[name] for name in _SETTINGS & set(options)}
        tenant = options.get("tenant", next(iter(tenants)))
        if tenant is not None:
            changed["engine"] = self.kv.for_tenant(tenant)
        rest = {k: v for k, v in options.items() if k not in _SETTINGS and k != "tenant"}
        return (self.model_copy(update=changed) if changed else self), rest

    def uncached_while_warming(self) -> Self:
        """Return this model, while an engine warms itself one without an answer cache.

        Nothing may come from or go to a cache then, whatever the chain's settings are.
        """
        if self.kv.is_warming and self.cache is not False:
            return self.model_copy(update={"cache": False})
        return self

    def told(self, config: RunnableConfig | None, options: dict[str, Any]) -> dict[str, Any]:
        """Add to a call's arguments what the metadata of its config says."""
        metadata = ensure_config(config).get("metadata") or {}
        said = {
            "question": metadata.get(QUESTION_KEY),
            "tenant": metadata.get(TENANT_KEY),
        }
        return {**{k: v for k, v in said.items() if v is not None}, **options}


def answer_info(completion: Completion) -> dict[str, Any]:
    """Return what is said of an answer besides its text."""
    return {
        "finish_reason": completion.finish_reason,
        "usage": completion.usage.as_dict(),
        "token_ids": list(completion.token_ids),
        "margins": list(completion.margins),
    }
