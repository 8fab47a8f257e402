"""A LangChain chat model that answers through an engine."""

import asyncio
from collections.abc import AsyncIterator, Iterator, Sequence
from typing import Any

from langchain_core.callbacks import AsyncCallbackManagerForLLMRun, CallbackManagerForLLMRun
from langchain_core.language_models import BaseChatModel, LangSmithParams, LanguageModelInput
from langchain_core.messages import AIMessage, AIMessageChunk, BaseMessage
from langchain_core.messages.ai import InputTokenDetails, UsageMetadata
from langchain_core.outputs import ChatGeneration, ChatGenerationChunk, ChatResult, LLMResult
from langchain_core.runnables import Runnable, RunnableConfig
from langchain_core.utils.function_calling import convert_to_openai_tool
from pydantic import ConfigDict, Field, SecretStr

from centroidkv.iteration import iterate
from centroidkv.langchain.messages import as_turns
from centroidkv.langchain.settings import ModelSettings, RunManager, answer_info
from centroidkv.langchain.tools import ToolOffer, as_chunks, as_fields, offer_tools
from centroidkv.types import Chunk, Completion

__all__ = ["ChatCentroidKV"]


class ChatCentroidKV(ModelSettings, BaseChatModel):
    """Messages in, message out, with the KV of known prefixes reused.

    `usage_metadata` says how many prompt tokens were really skipped (`cache_read`) and newly
    stored (`cache_creation`); `response_metadata["usage"]` holds outcome, reason and times.

    ```python
    chat = ChatCentroidKV(engine=engine, max_tokens=64)
    ```
    """

    model_config = ConfigDict(extra="forbid", arbitrary_types_allowed=True)

    # Accepted for the sake of LangChain's standard constructor: a local model asks for no key, and
    # its errors do not pass by trying again.
    api_key: SecretStr | None = Field(default=None, exclude=True, repr=False)
    max_retries: int = 0
    streaming: bool = False

    @property
    def _llm_type(self) -> str:
        return "centroidkv-chat"

    @property
    def _identifying_params(self) -> dict[str, Any]:
        return self.identity()

    def _get_ls_params(self, stop: list[str] | None = None, **kwargs: Any) -> LangSmithParams:
        params = super()._get_ls_params(stop=stop, **kwargs)
        params["ls_provider"] = "centroidkv"
        name = kwargs.get("model") or self.model
        params["ls_model_name"] = name or f"centroidkv-{self.kv.model.fingerprint[:16]}"
        return params

    def get_num_tokens(self, text: str) -> int:
        return self.kv.model.count_tokens(text)

    def get_token_ids(self, text: str) -> list[int]:
        return list(self.kv.model.encode(text, chat_template=False).token_ids)

    def get_num_tokens_from_messages(
        self, messages: list[BaseMessage], tools: Sequence[Any] | None = None
    ) -> int:
        schemas = [convert_to_openai_tool(tool) for tool in tools or []]
        return len(self.kv.model.encode(as_turns(messages), tools=schemas))

    def bind_tools(
        self, tools: Sequence[Any], *, tool_choice: Any = None, **kwargs: Any
    ) -> Runnable[Any, AIMessage]:
        """Offer tools to the model, which answers with text or with calls.

        Args:
            tools: What LangChain turns into a schema: functions, pydantic classes, tools, dicts.
            tool_choice: `auto` (default), `any`, `none`, or a tool's name. A forced call begins
                as the chat template writes one; its arguments are the model's own.
            **kwargs: Arguments of every call.

        Raises:
            ConfigError: The chat template knows no tools, or `tool_choice` names none of them.
        """
        schemas = [convert_to_openai_tool(tool) for tool in tools]
        offer_tools(schemas, tool_choice, self.kv.model.tool_format)
        return super().bind(tools=schemas, tool_choice=tool_choice, **kwargs)

    def generate(self, messages: list[list[BaseMessage]], *args: Any, **kwargs: Any) -> LLMResult:
        model, rest = self.settled(kwargs.get("metadata"), kwargs)
        return BaseChatModel.generate(model.uncached_while_warming(), messages, *args, **rest)

    async def agenerate(
        self, messages: list[list[BaseMessage]], *args: Any, **kwargs: Any
    ) -> LLMResult:
        model, rest = await asyncio.to_thread(self.settled, kwargs.get("metadata"), kwargs)
        if self.kv.is_warming:
            # LangChain's own takes what ends a warming run for an answer; nothing else than the
            # model itself has to see that call.
            model = model.uncached_while_warming()
            return await asyncio.to_thread(BaseChatModel.generate, model, messages, *args, **rest)
        return await BaseChatModel.agenerate(model, messages, *args, **rest)

    # A chat model's stream is not told of its run, so what the config says goes along.

    def stream(
        self,
        input: LanguageModelInput,  # noqa: A002 - LangChain's name
        config: RunnableConfig | None = None,
        **kwargs: Any,
    ) -> Iterator[AIMessageChunk]:
        return super().stream(input, config, **self.told(config, kwargs))

    async def astream(
        self,
        input: LanguageModelInput,  # noqa: A002 - LangChain's name
        config: RunnableConfig | None = None,
        **kwargs: Any,
    ) -> AsyncIterator[AIMessageChunk]:
        async for chunk in super().astream(input, config, **self.told(config, kwargs)):
            yield chunk

    def _chunks(
        self,
        messages: list[BaseMessage],
        stop: list[str] | None,
        run_manager: RunManager,
        options: dict[str, Any],
    ) -> Iterator[tuple[Chunk, ToolOffer | None]]:
        """Answer; each chunk comes with the tools that may be called.

        It starts with the first step, as that runs in a thread under asyncio.
        """
        tools, choice = options.pop("tools", None), options.pop("tool_choice", None)
        schemas = [convert_to_openai_tool(tool) for tool in tools or []]
        offer = offer_tools(schemas, choice, self.kv.model.tool_format)
        turns = as_turns(messages)
        if offer is None:
            yield from ((c, None) for c in self.chunks(turns, stop, run_manager, options))
            return
        stop = [*(stop if stop is not None else self.stop or []), *offer.stop]
        chunks = self.chunks(
            turns, stop, run_manager, options, tools=offer.tools, answer_start=offer.start
        )
        yield from ((c, offer) for c in offer.held_back(chunks))

    def _generate(
        self,
        messages: list[BaseMessage],
        stop: list[str] | None = None,
        run_manager: CallbackManagerForLLMRun | None = None,
        **kwargs: Any,
    ) -> ChatResult:
        *_, last = self._chunks(messages, stop, run_manager, kwargs)
        return _result(*last)

    async def _agenerate(
        self,
        messages: list[BaseMessage],
        stop: list[str] | None = None,
        run_manager: AsyncCallbackManagerForLLMRun | None = None,
        **kwargs: Any,
    ) -> ChatResult:
        chunks = self._chunks(messages, stop, run_manager, kwargs)
        *_, last = [chunk async for chunk in iterate(chunks)]
        return _result(*last)

    def _stream(
        self,
        messages: list[BaseMessage],
        stop: list[str] | None = None,
        run_manager: CallbackManagerForLLMRun | None = None,
        **kwargs: Any,
    ) -> Iterator[ChatGenerationChunk]:
        for chunk, offer in self._chunks(messages, stop, run_manager, kwargs):
            out = _message_chunk(chunk, offer)
            if run_manager is not None and chunk.text:
                run_manager.on_llm_new_token(chunk.text, chunk=out)
            yield out

    async def _astream(
        self,
        messages: list[BaseMessage],
        stop: list[str] | None = None,
        run_manager: AsyncCallbackManagerForLLMRun | None = None,
        **kwargs: Any,
    ) -> AsyncIterator[ChatGenerationChunk]:
        async for chunk, offer in iterate(self._chunks(messages, stop, run_manager, kwargs)):
            out = _message_chunk(chunk, offer)
            if run_manager is not None and chunk.text:
                await run_manager.on_llm_new_token(chunk.text, chunk=out)
            yield out


def _usage(completion: Completion) -> UsageMetadata:
    usage = completion.usage
    return UsageMetadata(
        input_tokens=usage.prompt_tokens,
        output_tokens=usage.completion_tokens,
        total_tokens=usage.prompt_tokens + usage.completion_tokens,
        input_token_details=InputTokenDetails(
            cache_read=usage.cached_tokens, cache_creation=usage.stored_tokens
        ),
    )


def _metadata(completion: Completion) -> dict[str, Any]:
    return {"model_provider": "centroidkv", "model_name": "centroidkv", **answer_info(completion)}


def _result(last: Chunk, offer: ToolOffer | None) -> ChatResult:
    completion = last.completion
    assert completion is not None
    said = as_fields(offer.read(completion.text)) if offer else {"content": completion.text}
    message = AIMessage(
        **said,
        usage_metadata=_usage(completion),
        response_metadata=_metadata(completion),
    )
    return ChatResult(generations=[ChatGeneration(message=message)])


def _message_chunk(chunk: Chunk, offer: ToolOffer | None) -> ChatGenerationChunk:
    completion = chunk.completion
    if completion is None:
        return ChatGenerationChunk(message=AIMessageChunk(content=chunk.text))
    message = AIMessageChunk(
        content=chunk.text,
        tool_call_chunks=as_chunks(offer.read(completion.text)) if offer else [],
        usage_metadata=_usage(completion),
        response_metadata=_metadata(completion),
        chunk_position="last",
    )
    return ChatGenerationChunk(message=message)
