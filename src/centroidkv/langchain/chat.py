"""A LangChain chat model that answers through an engine."""

from collections.abc import AsyncIterator, Iterator, Sequence
from typing import Any

from langchain_core.callbacks import AsyncCallbackManagerForLLMRun, CallbackManagerForLLMRun
from langchain_core.language_models import BaseChatModel, LangSmithParams
from langchain_core.messages import AIMessage, AIMessageChunk, BaseMessage
from langchain_core.messages.ai import InputTokenDetails, UsageMetadata
from langchain_core.outputs import ChatGeneration, ChatGenerationChunk, ChatResult, LLMResult
from langchain_core.runnables import Runnable
from pydantic import ConfigDict, Field, SecretStr

from centroidkv.errors import ConfigError
from centroidkv.iteration import iterate
from centroidkv.langchain.messages import as_turns
from centroidkv.langchain.settings import ModelSettings, answer_info
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

    # Accepted for the sake of LangChain's standard constructor: a local model asks for no key, has
    # no connection to time out, and its errors do not pass by trying again.
    api_key: SecretStr | None = Field(default=None, exclude=True, repr=False)
    timeout: float | None = None
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
        if tools:
            raise ConfigError("tools cannot be counted: the model's chat template knows none")
        return len(self.kv.model.encode(as_turns(messages)))

    def bind_tools(self, tools: Sequence[Any], **_: Any) -> Runnable[Any, AIMessage]:
        """Refuse tools, which this version cannot render.

        Raises:
            ConfigError: Always.
        """
        raise ConfigError(
            f"{len(tools)} tools cannot be bound: this version renders no tools into the chat "
            "template; put what the model needs into the prompt"
        )

    # As with the text model, nothing may come from or go to an answer cache while warming.

    def generate(self, messages: list[list[BaseMessage]], *args: Any, **kwargs: Any) -> LLMResult:
        if self.kv.is_warming and self.cache is not False:
            return self.model_copy(update={"cache": False}).generate(messages, *args, **kwargs)
        return super().generate(messages, *args, **kwargs)

    async def agenerate(
        self, messages: list[list[BaseMessage]], *args: Any, **kwargs: Any
    ) -> LLMResult:
        if self.kv.is_warming and self.cache is not False:
            uncached = self.model_copy(update={"cache": False})
            return await uncached.agenerate(messages, *args, **kwargs)
        return await super().agenerate(messages, *args, **kwargs)

    def _generate(
        self,
        messages: list[BaseMessage],
        stop: list[str] | None = None,
        run_manager: CallbackManagerForLLMRun | None = None,
        **kwargs: Any,
    ) -> ChatResult:
        chunks = list(self.chunks(as_turns(messages), stop, run_manager, kwargs))
        return _result(chunks[-1])

    async def _agenerate(
        self,
        messages: list[BaseMessage],
        stop: list[str] | None = None,
        run_manager: AsyncCallbackManagerForLLMRun | None = None,
        **kwargs: Any,
    ) -> ChatResult:
        stream = iterate(self.chunks(as_turns(messages), stop, run_manager, kwargs))
        chunks = [chunk async for chunk in stream]
        return _result(chunks[-1])

    def _stream(
        self,
        messages: list[BaseMessage],
        stop: list[str] | None = None,
        run_manager: CallbackManagerForLLMRun | None = None,
        **kwargs: Any,
    ) -> Iterator[ChatGenerationChunk]:
        for chunk in self.chunks(as_turns(messages), stop, run_manager, kwargs):
            out = _message_chunk(chunk)
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
        async for chunk in iterate(self.chunks(as_turns(messages), stop, run_manager, kwargs)):
            out = _message_chunk(chunk)
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
            cache_read=usage.reused_tokens, cache_creation=usage.stored_tokens
        ),
    )


def _metadata(completion: Completion) -> dict[str, Any]:
    return {"model_provider": "centroidkv", "model_name": "centroidkv", **answer_info(completion)}


def _result(last: Chunk) -> ChatResult:
    completion = last.completion
    assert completion is not None
    message = AIMessage(
        content=completion.text,
        usage_metadata=_usage(completion),
        response_metadata=_metadata(completion),
    )
    return ChatResult(generations=[ChatGeneration(message=message)])


def _message_chunk(chunk: Chunk) -> ChatGenerationChunk:
    if chunk.completion is None:
        return ChatGenerationChunk(message=AIMessageChunk(content=chunk.text))
    message = AIMessageChunk(
        content=chunk.text,
        usage_metadata=_usage(chunk.completion),
        response_metadata=_metadata(chunk.completion),
        chunk_position="last",
    )
    return ChatGenerationChunk(message=message)
