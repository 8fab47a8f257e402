"""A LangChain LLM that answers through an engine."""

import asyncio
from collections.abc import AsyncIterator, Iterator
from typing import Any

from langchain_core.callbacks import AsyncCallbackManagerForLLMRun, CallbackManagerForLLMRun
from langchain_core.language_models.llms import BaseLLM
from langchain_core.outputs import Generation, GenerationChunk, LLMResult
from langchain_core.runnables import Runnable
from pydantic import ConfigDict

from centroidkv.iteration import iterate
from centroidkv.langchain.settings import ModelSettings, answer_info
from centroidkv.types import Chunk, Completion

__all__ = ["CentroidKVLLM"]


class CentroidKVLLM(ModelSettings, BaseLLM):
    """Text in, text out, with the KV of known prefixes reused.

    The question is taken from `config={"metadata": {"centroidkv_question": ...}}`, else from
    what `CentroidKVRetriever` noted, else from the prompt's text.

    ```python
    llm = CentroidKVLLM(engine=engine, max_tokens=64)
    ```
    """

    model_config = ConfigDict(extra="forbid", arbitrary_types_allowed=True)

    chat_template: bool = True

    @property
    def _llm_type(self) -> str:
        return "centroidkv"

    @property
    def _identifying_params(self) -> dict[str, Any]:
        return {**self.identity(), "chat_template": self.chat_template}

    def get_num_tokens(self, text: str) -> int:
        return self.kv.model.count_tokens(text)

    def get_token_ids(self, text: str) -> list[int]:
        return list(self.kv.model.encode(text, chat_template=False).token_ids)

    def generate(self, prompts: list[str], *args: Any, **kwargs: Any) -> LLMResult:
        model, rest = self.settled(kwargs.get("metadata"), kwargs)
        return BaseLLM.generate(model.uncached_while_warming(), prompts, *args, **rest)

    async def agenerate(self, prompts: list[str], *args: Any, **kwargs: Any) -> LLMResult:
        model, rest = await asyncio.to_thread(self.settled, kwargs.get("metadata"), kwargs)
        return await BaseLLM.agenerate(model.uncached_while_warming(), prompts, *args, **rest)

    # A batch is as many requests: each has its own question, tenant and failure. What LangChain
    # does for text models hides all configs but the first from the model.

    batch = Runnable.batch
    abatch = Runnable.abatch

    def _generate(
        self,
        prompts: list[str],
        stop: list[str] | None = None,
        run_manager: CallbackManagerForLLMRun | None = None,
        **kwargs: Any,
    ) -> LLMResult:
        done: list[Completion] = []
        run_manager = run_manager if len(prompts) == 1 else None
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
        run_manager = run_manager if len(prompts) == 1 else None
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
        """Start an answer with the first step, as that runs in a thread under asyncio."""
        yield from self.chunks(prompt, stop, run_manager, options, chat_template=self.chat_template)


def _generation_chunk(chunk: Chunk) -> GenerationChunk:
    info = answer_info(chunk.completion) if chunk.completion is not None else None
    return GenerationChunk(text=chunk.text, generation_info=info)


def _result(completions: list[Completion]) -> LLMResult:
    prompt = sum(c.usage.prompt_tokens for c in completions)
    answer = sum(c.usage.completion_tokens for c in completions)
    return LLMResult(
        generations=[
            [Generation(text=c.text, generation_info=answer_info(c))] for c in completions
        ],
        llm_output={
            "token_usage": {
                "prompt_tokens": prompt,
                "completion_tokens": answer,
                "total_tokens": prompt + answer,
                "cache_read": sum(c.usage.cached_tokens for c in completions),
            }
        },
    )
