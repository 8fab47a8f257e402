"""A LangChain LLM that answers through an engine."""

from collections.abc import AsyncIterator, Iterator
from typing import Any, Self

from langchain_core.callbacks import AsyncCallbackManagerForLLMRun, CallbackManagerForLLMRun
from langchain_core.language_models.llms import BaseLLM
from langchain_core.outputs import Generation, GenerationChunk, LLMResult
from pydantic import ConfigDict, Field, PrivateAttr, model_validator

from centroidkv.engine import Engine
from centroidkv.errors import ConfigError
from centroidkv.iteration import iterate
from centroidkv.types import Chunk, Completion, Reuse

QUESTION_KEY = "centroidkv_question"
_PER_CALL = {"max_tokens", "temperature", "top_p", "seed", "question", "reuse"}

__all__ = ["QUESTION_KEY", "CentroidKVLLM"]


class CentroidKVLLM(BaseLLM):
    """Text in, text out, with the KV of known prefixes reused.

    Give an `engine`, or `model` and `store` to open one. The question is taken from
    `config={"metadata": {"centroidkv_question": ...}}`, else from what `CentroidKVRetriever`
    noted, else from the prompt's text.

    ```python
    llm = CentroidKVLLM(engine=engine, max_tokens=64)
    ```
    """

    model_config = ConfigDict(extra="forbid", arbitrary_types_allowed=True)

    engine: Engine | None = Field(default=None, exclude=True, repr=False)
    model: str | None = None
    store: str | None = None
    embedder: str = "bundled:minilm"
    max_tokens: int = 256
    temperature: float = 0.0
    top_p: float = 1.0
    seed: int | None = None
    stop: list[str] | None = None
    reuse: Reuse = "exact"
    chat_template: bool = True
    _owned: Engine | None = PrivateAttr(default=None)

    @model_validator(mode="after")
    def _open_engine(self) -> Self:
        if self.engine is None:
            if not self.store:
                raise ConfigError("CentroidKVLLM needs engine=..., or model=... and store=...")
            model = self.model or "bundled:smollm2"
            self._owned = Engine.open(self.store, model=model, embedder=self.embedder)
        elif self.model or self.store:
            raise ConfigError("give CentroidKVLLM either engine=... or model=... and store=...")
        return self

    @property
    def kv(self) -> Engine:
        """The engine behind this model."""
        engine = self.engine or self._owned
        assert engine is not None
        return engine

    @property
    def _llm_type(self) -> str:
        return "centroidkv"

    @property
    def _identifying_params(self) -> dict[str, Any]:
        return {
            "model": self.kv.model.fingerprint,
            "max_tokens": self.max_tokens,
            "temperature": self.temperature,
            "top_p": self.top_p,
            "seed": self.seed,
            "stop": self.stop,
            "chat_template": self.chat_template,
        }

    def get_num_tokens(self, text: str) -> int:
        return self.kv.model.count_tokens(text)

    def get_token_ids(self, text: str) -> list[int]:
        return list(self.kv.model.encode(text, chat_template=False).token_ids)

    # While an engine warms itself through a chain, no answer may come from or go to an answer
    # cache, whatever the chain's settings are.

    def generate(self, prompts: list[str], *args: Any, **kwargs: Any) -> LLMResult:
        if self.kv.is_warming and self.cache is not False:
            return self.model_copy(update={"cache": False}).generate(prompts, *args, **kwargs)
        return super().generate(prompts, *args, **kwargs)

    async def agenerate(self, prompts: list[str], *args: Any, **kwargs: Any) -> LLMResult:
        if self.kv.is_warming and self.cache is not False:
            uncached = self.model_copy(update={"cache": False})
            return await uncached.agenerate(prompts, *args, **kwargs)
        return await super().agenerate(prompts, *args, **kwargs)

    def _generate(
        self,
        prompts: list[str],
        stop: list[str] | None = None,
        run_manager: CallbackManagerForLLMRun | None = None,
        **kwargs: Any,
    ) -> LLMResult:
        done: list[Completion] = []
        for prompt in prompts:
            stream = self._chunks(prompt, stop, run_manager, kwargs)
            done += [c.completion for c in stream if c.completion is not None]
        return _result(done)

    async def _agenerate(
        self,
        prompts: list[str],
        stop: list[str] | None = None,
        run_manager: AsyncCallbackManagerForLLMRun | None = None,
        **kwargs: Any,
    ) -> LLMResult:
        done: list[Completion] = []
        for prompt in prompts:
            stream = iterate(self._chunks(prompt, stop, run_manager, kwargs))
            done += [c.completion async for c in stream if c.completion is not None]
        return _result(done)

    def _stream(
        self,
        prompt: str,
        stop: list[str] | None = None,
        run_manager: CallbackManagerForLLMRun | None = None,
        **kwargs: Any,
    ) -> Iterator[GenerationChunk]:
        for chunk in self._chunks(prompt, stop, run_manager, kwargs):
            out = _generation_chunk(chunk)
            if run_manager is not None and chunk.text:
                run_manager.on_llm_new_token(chunk.text, chunk=out)
            yield out

    async def _astream(
        self,
        prompt: str,
        stop: list[str] | None = None,
        run_manager: AsyncCallbackManagerForLLMRun | None = None,
        **kwargs: Any,
    ) -> AsyncIterator[GenerationChunk]:
        async for chunk in iterate(self._chunks(prompt, stop, run_manager, kwargs)):
            out = _generation_chunk(chunk)
            if run_manager is not None and chunk.text:
                await run_manager.on_llm_new_token(chunk.text, chunk=out)
            yield out

    def _chunks(
        self,
        prompt: str,
        stop: list[str] | None,
        run_manager: CallbackManagerForLLMRun | AsyncCallbackManagerForLLMRun | None,
        options: dict[str, Any],
    ) -> Iterator[Chunk]:
        unknown = sorted(set(options) - _PER_CALL)
        if unknown:
            known = ", ".join(sorted(_PER_CALL))
            raise ConfigError(f"unknown argument {', '.join(unknown)}; per call known: {known}")
        metadata = (run_manager.metadata if run_manager else None) or {}
        return self.kv.stream(
            prompt,
            question=options.get("question") or metadata.get(QUESTION_KEY),
            reuse=options.get("reuse", self.reuse),
            chat_template=self.chat_template,
            max_tokens=options.get("max_tokens", self.max_tokens),
            temperature=options.get("temperature", self.temperature),
            top_p=options.get("top_p", self.top_p),
            seed=options.get("seed", self.seed),
            stop=stop if stop is not None else (self.stop or []),
        )


def _info(completion: Completion) -> dict[str, Any]:
    return {
        "finish_reason": completion.finish_reason,
        "usage": completion.usage.as_dict(),
        "token_ids": list(completion.token_ids),
        "margins": list(completion.margins),
    }


def _generation_chunk(chunk: Chunk) -> GenerationChunk:
    info = _info(chunk.completion) if chunk.completion is not None else None
    return GenerationChunk(text=chunk.text, generation_info=info)


def _result(completions: list[Completion]) -> LLMResult:
    prompt = sum(c.usage.prompt_tokens for c in completions)
    answer = sum(c.usage.completion_tokens for c in completions)
    return LLMResult(
        generations=[[Generation(text=c.text, generation_info=_info(c))] for c in completions],
        llm_output={
            "token_usage": {
                "prompt_tokens": prompt,
                "completion_tokens": answer,
                "total_tokens": prompt + answer,
                "cache_read": sum(c.usage.reused_tokens for c in completions),
            }
        },
    )
