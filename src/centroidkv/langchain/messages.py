"""LangChain messages to plain turns."""

from collections.abc import Sequence
from typing import Any

from langchain_core.messages import (
    AIMessage,
    BaseMessage,
    ChatMessage,
    HumanMessage,
    SystemMessage,
    ToolMessage,
)

from centroidkv.errors import ConfigError
from centroidkv.tool_calls import ToolCall
from centroidkv.types import Message

_ROLES: dict[type[BaseMessage], str] = {
    SystemMessage: "system",
    HumanMessage: "user",
    AIMessage: "assistant",
    ToolMessage: "tool",
}

# What a message may call its role itself; templates know those of the second line.
_NAMED = {"human": "user", "ai": "assistant"}
_KNOWN = {"system", "developer", "user", "assistant", "tool", "function", "ipython"}

__all__ = ["as_turns"]


def as_turns(messages: Sequence[BaseMessage]) -> list[Message]:
    """Turn messages into (role, text).

    Raises:
        ConfigError: There are none, all are system messages, a role is unknown, or a content is
            not text.
    """
    if not messages:
        raise ConfigError("messages is empty; send at least one human message")
    turns = [_turn(m, i) for i, m in enumerate(messages)]
    if all(turn.role == "system" for turn in turns):
        raise ConfigError("messages has only system messages; add the human message to answer")
    return turns


def _turn(message: BaseMessage, number: int) -> Message:
    role, text = _role(message, number), _text(message.content, number)
    if isinstance(message, AIMessage) and message.tool_calls:
        calls = [ToolCall(c["name"], c["args"], c["id"] or "") for c in message.tool_calls]
        return Message(role, text, tuple(calls))
    if isinstance(message, ToolMessage):
        return Message(role, text, tool_call_id=message.tool_call_id, name=message.name or "")
    return Message(role, text)


def _role(message: BaseMessage, number: int) -> str:
    if isinstance(message, ChatMessage):
        role = _NAMED.get(message.role, message.role)
        if role not in _KNOWN:
            raise ConfigError(
                f"messages[{number}].role is {message.role!r}, which is unknown; known: "
                f"{', '.join(sorted(_KNOWN))}"
            )
        return role
    for kind, role in _ROLES.items():
        if isinstance(message, kind):
            return role
    raise ConfigError(
        f"messages[{number}] is a {type(message).__name__}, whose role is unknown; use system, "
        "human, AI, tool or chat messages"
    )


def _text(content: Any, number: int) -> str:
    if isinstance(content, str):
        return content
    texts: list[str] = []
    for part in content:
        kind = part.get("type") if isinstance(part, dict) else "text"
        if kind != "text":
            raise ConfigError(
                f"messages[{number}].content has a part of type {kind!r}; this model reads text"
            )
        texts.append(part if isinstance(part, str) else str(part.get("text", "")))
    return "".join(texts)
