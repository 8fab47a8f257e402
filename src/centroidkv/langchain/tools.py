"""Tools for the chat model: which are offered, whether a call is forced, and reading the calls.

How a call is written is the chat template's matter (`ToolFormat`); here it meets LangChain's.
"""

import json
import uuid
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from langchain_core.messages import InvalidToolCall, ToolCallChunk
from langchain_core.messages import ToolCall as LangChainToolCall
from langchain_core.messages.tool import invalid_tool_call, tool_call, tool_call_chunk

from centroidkv.errors import ConfigError
from centroidkv.tool_calls import Tool, ToolAnswer, ToolFormat
from centroidkv.types import Chunk

__all__ = ["ToolOffer", "as_chunks", "as_fields", "offer_tools"]

_FORCED = {"any", "required", True}
_FREE = {None, "auto", False}


@dataclass(frozen=True, slots=True)
class ToolOffer:
    """Tools offered to one request. `start` is what a forced call begins with, else empty."""

    tools: tuple[Tool, ...]
    format: ToolFormat
    start: str = ""

    @property
    def stop(self) -> tuple[str, ...]:
        """What ends a forced call, so that the model does not go on behind it."""
        return (self.format.closer,) if self.start and self.format.closer else ()

    def read(self, text: str) -> ToolAnswer:
        """Take an answer apart; every call gets an id."""
        answer = self.format.read(self.start + text)
        named = tuple(replace(c, id=c.id or uuid.uuid4().hex[:9]) for c in answer.calls)
        return replace(answer, calls=named)

    def held_back(self, chunks: Iterator[Chunk]) -> Iterator[Chunk]:
        """Pass text on as soon as it cannot be part of a call any more."""
        text, sent = "", 0
        for chunk in chunks:
            text += chunk.text
            if chunk.completion is not None:
                answer = self.read(text)
                # What looked like a call and was none is text after all.
                rest = "" if answer.calls or answer.invalid else (self.start + text)[sent:]
                yield replace(chunk, text=rest)
                return
            safe = self._num_safe(text)
            if safe > sent:
                yield Chunk(text[sent:safe])
                sent = safe

    def _num_safe(self, text: str) -> int:
        """Count the leading characters that belong to no call."""
        if self.start or not text.strip() or self.format.may_begin(text):
            return 0
        opener = self.format.opener
        at = text.find(opener) if opener else -1
        if at >= 0:
            return at
        ends = (n for n in range(min(len(opener), len(text)), 0, -1) if text.endswith(opener[:n]))
        return len(text) - next(ends, 0)


def offer_tools(
    tools: Sequence[Mapping[str, Any]] | None, choice: Any, known: ToolFormat | None
) -> ToolOffer | None:
    """Prepare tools, in OpenAI's form, for a request; None when there are none to offer.

    Raises:
        ConfigError: The chat template knows no tools, or `choice` names none of them.
    """
    if not tools or choice == "none":
        return None
    if known is None:
        raise ConfigError(
            "tools cannot be bound: the model's chat template knows none (or writes their calls "
            "in a form that is not JSON); use a model whose template does, or put what the model "
            "needs into the prompt"
        )
    names = [tool["function"]["name"] for tool in tools]
    if isinstance(choice, Mapping):
        choice = choice.get("function", choice).get("name")
    start = ""
    if choice in _FORCED:
        start = known.start(names[0] if len(names) == 1 else None)
    elif choice not in _FREE:
        if choice not in names:
            raise ConfigError(
                f"tool_choice {choice!r} is none of the tools bound ({', '.join(names)}), and "
                "none of 'auto', 'any', 'none'"
            )
        start = known.start(choice)
    return ToolOffer(tuple(tools), known, start)


def as_fields(answer: ToolAnswer) -> dict[str, Any]:
    """Return the content and calls of an answer as fields of an `AIMessage`."""
    calls: list[LangChainToolCall] = [
        tool_call(name=c.name, args=dict(c.arguments), id=c.id) for c in answer.calls
    ]
    return {
        "content": answer.content,
        "tool_calls": calls,
        "invalid_tool_calls": [_invalid(text) for text in answer.invalid],
    }


def as_chunks(answer: ToolAnswer) -> list[ToolCallChunk]:
    """Return the calls of an answer as pieces of a stream, each in one piece."""
    whole = [
        tool_call_chunk(name=c.name, args=json.dumps(dict(c.arguments)), id=c.id, index=i)
        for i, c in enumerate(answer.calls)
    ]
    broken = [
        tool_call_chunk(name=None, args=text, id=None, index=len(whole) + i)
        for i, text in enumerate(answer.invalid)
    ]
    return whole + broken


def _invalid(text: str) -> InvalidToolCall:
    return invalid_tool_call(
        name=None, args=text, id=None, error="not a JSON object with a name and arguments"
    )
