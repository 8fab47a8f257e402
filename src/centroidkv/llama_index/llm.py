"""A LlamaIndex language model that answers through an engine."""

import asyncio
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any, Self

from llama_index.core.base.llms.types import (
    ChatMessage,
    ChatResponse,
    ChatResponseAsyncGen,
    ChatResponseGen,
    CompletionResponse,
    CompletionResponseAsyncGen,
    CompletionResponseGen,
    LLMMetadata,
    MessageRole,
)
from llama_index.core.bridge.pydantic import ConfigDict, Field, model_validator
from llama_index.core.llms import CustomLLM
from llama_index.core.llms.callbacks import llm_chat_callback, llm_completion_callback
from llama_index.core.prompts import BasePromptTemplate
from llama_index.core.types import TokenAsyncGen, TokenGen

from centroidkv.config import Sampling, SamplingOptions
from centroidkv.engine import Engine
from centroidkv.errors import ConfigError
from centroidkv.iteration import begun_late, iterate
from centroidkv.own_engine import engine_of_fields
from centroidkv.serving.request import require_served
from centroidkv.types import Chunk, Completion, Message, Reuse

_SETTINGS = {"max_tokens", "temperature", "top_p", "seed", "stop", "timeout", "reuse"}
_PER_CALL = _SETTINGS | {"question", "tenant"}

# What other vendors call the roles that chat templates know.
_ROLES = {
    MessageRole.CHATBOT: "assistant",
    MessageRole.MODEL: "assistant",
    MessageRole.DEVELOPER: "system",
    MessageRole.FUNCTION: "tool",
}

# The question of the `predict` family, which knows it by name, on its way to the model call.
_question: ContextVar[str | None] = ContextVar("centroidkv_question", default=None)

__all__ = ["CentroidKVLLM"]


class CentroidKVLLM(CustomLLM):
    """Prompt or messages in, text out, with the KV of known prefixes reused.

    Give an `engine`, or `model` and `store` to open one. In query engines the question is the
    prompt's `query_str`. Usage stands in `raw["usage"]` and `additional_kwargs`.

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
    timeout: float | None = None
    reuse: Reuse | None = None

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

    @classmethod
    def class_name(cls) -> str:
        return "CentroidKVLLM"

    @property
    def kv(self) -> Engine:
        """The engine behind this model."""
        assert self.engine is not None
        return self.engine

    @property
    def metadata(self) -> LLMMetadata:
        return LLMMetadata(
            context_window=self.kv.model.context_tokens,
            num_output=self.max_tokens,
            is_chat_model=True,
            model_name=f"centroidkv-{self.kv.model.fingerprint[:16]}",
        )

    # completion

    @llm_completion_callback()
    def complete(
        self,
        prompt: str,
        formatted: bool = False,
        **kwargs: Any,
    ) -> CompletionResponse:
        *_, last = self._chunks(prompt, kwargs)
        return _completion(last)

    @llm_completion_callback()
    def stream_complete(
        self,
        prompt: str,
        formatted: bool = False,
        **kwargs: Any,
    ) -> CompletionResponseGen:
        return _completions(self._chunks(prompt, kwargs))

    @llm_completion_callback()
    async def acomplete(
        self,
        prompt: str,
        formatted: bool = False,
        **kwargs: Any,
    ) -> CompletionResponse:
        begun = begun_late(lambda: self._chunks(prompt, kwargs))
        chunks = [c async for c in iterate(begun)]
        return _completion(chunks[-1])

    @llm_completion_callback()
    async def astream_complete(
        self,
        prompt: str,
        formatted: bool = False,
        **kwargs: Any,
    ) -> CompletionResponseAsyncGen:
        return iterate(_completions(await asyncio.to_thread(self._chunks, prompt, kwargs)))

    # chat

    @llm_chat_callback()
    def chat(self, messages: Sequence[ChatMessage], **kwargs: Any) -> ChatResponse:
        *_, last = self._chunks(_turns(messages), kwargs)
        return _chat(_completion(last))

    @llm_chat_callback()
    def stream_chat(self, messages: Sequence[ChatMessage], **kwargs: Any) -> ChatResponseGen:
        responses = _completions(self._chunks(_turns(messages), kwargs))
        return (_chat(response) for response in responses)

    @llm_chat_callback()
    async def achat(self, messages: Sequence[ChatMessage], **kwargs: Any) -> ChatResponse:
        begun = begun_late(lambda: self._chunks(_turns(messages), kwargs))
        chunks = [c async for c in iterate(begun)]
        return _chat(_completion(chunks[-1]))

    @llm_chat_callback()
    async def astream_chat(
        self, messages: Sequence[ChatMessage], **kwargs: Any
    ) -> ChatResponseAsyncGen:
        chunks = await asyncio.to_thread(self._chunks, _turns(messages), kwargs)
        responses = _completions(chunks)

        async def chats() -> ChatResponseAsyncGen:
            async for response in iterate(responses):
                yield _chat(response)

        return chats()

    # the predict family knows the question by name: in `prompt.kwargs` when partially formatted,
    # in `prompt_args` otherwise

    def predict(self, prompt: BasePromptTemplate, **prompt_args: Any) -> str:
        with _asking(prompt, prompt_args):
            return super().predict(prompt, **prompt_args)

    def stream(self, prompt: BasePromptTemplate, **prompt_args: Any) -> TokenGen:
        with _asking(prompt, prompt_args):
            return super().stream(prompt, **prompt_args)

    async def apredict(self, prompt: BasePromptTemplate, **prompt_args: Any) -> str:
        with _asking(prompt, prompt_args):
            return await super().apredict(prompt, **prompt_args)

    async def astream(self, prompt: BasePromptTemplate, **prompt_args: Any) -> TokenAsyncGen:
        with _asking(prompt, prompt_args):
            return await super().astream(prompt, **prompt_args)

    def _chunks(self, prompt: str | Sequence[Message], options: dict[str, Any]) -> Iterator[Chunk]:
        unknown = sorted(set(options) - _PER_CALL)
        if unknown:
            known = ", ".join(sorted(_PER_CALL))
            raise ConfigError(f"unknown argument {', '.join(unknown)}; per call known: {known}")
        changed = {name: options[name] for name in _SETTINGS & set(options)}
        model = self.model_copy(update=changed)
        tenant = options.get("tenant")
        engine = self.kv if tenant is None else self.kv.for_tenant(tenant)
        return engine.stream(
            prompt,
            question=options.get("question") or _question.get(),
            reuse=model.reuse,
            **model.sampling(),
        )

    def sampling(self) -> SamplingOptions:
        """Return how an answer is decoded."""
        return SamplingOptions(
            max_tokens=self.max_tokens,
            temperature=self.temperature,
            top_p=self.top_p,
            seed=self.seed,
            stop=self.stop or [],
            timeout_s=self.timeout,
        )


@contextmanager
def _asking(prompt: BasePromptTemplate, prompt_args: dict[str, Any]) -> Iterator[None]:
    question = {**prompt.kwargs, **prompt_args}.get("query_str")
    token = _question.set(question if isinstance(question, str) else None)
    try:
        yield
    finally:
        _question.reset(token)


def _turns(messages: Sequence[ChatMessage]) -> list[Message]:
    """Turn chat messages into (role, text).

    Raises:
        ConfigError: There are none, all are system messages, or one holds more than text.
    """
    if not messages:
        raise ConfigError("messages is empty; send at least one user message")
    turns = []
    for number, message in enumerate(messages):
        kinds = {type(block).__name__ for block in message.blocks} - {"TextBlock"}
        if kinds:
            raise ConfigError(
                f"messages[{number}] holds {', '.join(sorted(kinds))}; this model reads text"
            )
        role = _ROLES.get(message.role, message.role.value)
        turns.append(Message(role, message.content or ""))
    if all(turn.role == "system" for turn in turns):
        raise ConfigError("messages has only system messages; add the user message to answer")
    return turns


def _info(completion: Completion) -> dict[str, Any]:
    usage = completion.usage
    return {
        "outcome": usage.outcome,
        "reason": usage.reason,
        "prompt_tokens": usage.prompt_tokens,
        "completion_tokens": usage.completion_tokens,
        "total_tokens": usage.prompt_tokens + usage.completion_tokens,
        "reused_tokens": usage.reused_tokens,
        "blended_tokens": usage.blended_tokens,
        "recomputed_tokens": usage.recomputed_tokens,
        "blend_problem": usage.blend_problem,
        "approximate": usage.approximate,
        "ttft_s": usage.ttft_s,
    }


def _completion(last: Chunk) -> CompletionResponse:
    completion = last.completion
    assert completion is not None
    return CompletionResponse(
        text=completion.text,
        raw={
            "finish_reason": completion.finish_reason,
            "usage": completion.usage.as_dict(),
            "token_ids": list(completion.token_ids),
        },
        additional_kwargs=_info(completion),
    )


def _completions(chunks: Iterator[Chunk]) -> CompletionResponseGen:
    """Yield the text so far and what is new; the last one carries the usage."""
    text = ""
    for chunk in chunks:
        text += chunk.text
        response = CompletionResponse(text=text, delta=chunk.text)
        if chunk.completion is not None:
            response = _completion(chunk)
            response.delta = chunk.text
        yield response


def _chat(response: CompletionResponse) -> ChatResponse:
    return ChatResponse(
        message=ChatMessage(role=MessageRole.ASSISTANT, content=response.text),
        delta=response.delta,
        raw=response.raw,
        additional_kwargs=response.additional_kwargs,
    )
