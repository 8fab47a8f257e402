"""Tool calls in text: how a chat template writes them, and reading them out of an answer.

Every template has a format of its own (`<tool_call>{...}</tool_call>`, a bare JSON object, a list
behind `[TOOL_CALLS]`). What they share is a JSON object that holds a name and arguments; what
differs is measured from the template itself (`models/rendering.py`) and kept in a `ToolFormat`.
"""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, TypeAlias

__all__ = ["Tool", "ToolAnswer", "ToolCall", "ToolFormat"]

# A function's schema as chat templates expect it: {"type": "function", "function": {...}}.
Tool: TypeAlias = Mapping[str, Any]


@dataclass(frozen=True, slots=True)
class ToolCall:
    """A call of a tool that a model asked for."""

    name: str
    arguments: Mapping[str, Any]
    id: str = ""


@dataclass(frozen=True, slots=True)
class ToolAnswer:
    """An answer taken apart: what was said, the calls, and what looks like a call but is none."""

    content: str
    calls: tuple[ToolCall, ...] = ()
    invalid: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class ToolFormat:
    """How a chat template writes a tool call.

    `lead` and `closer` are what stands before and after the JSON object; both may be empty.
    `name_key` and `arguments_key` are the object's keys.
    """

    lead: str
    closer: str
    name_key: str
    arguments_key: str

    @property
    def opener(self) -> str:
        """What tells a call from plain text, if anything does."""
        return self.lead.strip()

    def start(self, name: str | None) -> str:
        """Return what a forced call begins with: up to its arguments, or to an unknown name.

        It ends before a space, since most tokenizers join a space to what follows it.
        """
        begin = f'{self.lead}{{"{self.name_key}":'
        return begin if name is None else f'{begin} {json.dumps(name)}, "{self.arguments_key}":'

    def may_begin(self, text: str) -> bool:
        """Tell whether an answer that starts with `text` may still become a call."""
        text = text.lstrip()
        starts = [s for s in (self.opener, "{", "[") if s]
        return any(text.startswith(s) or s.startswith(text) for s in starts)

    def read(self, text: str) -> ToolAnswer:
        """Take an answer apart; text that holds no call is returned as it is."""
        if self.opener and self.opener in text:
            content, *pieces = text.split(self.opener)
        elif text.lstrip().startswith(("{", "[")):
            # Where the opener is a special token, decoding has dropped it.
            content, pieces = "", [text]
        else:
            return ToolAnswer(text)
        calls: list[ToolCall] = []
        invalid: list[str] = []
        for piece in pieces:
            found = [call for value in _objects(piece) for call in self._calls(value)]
            calls += found
            if not found:
                invalid.append(piece.strip())
        if not calls and pieces == [text]:
            return ToolAnswer(text)
        return ToolAnswer(content.strip(), tuple(calls), tuple(invalid))

    def _calls(self, value: Any) -> list[ToolCall]:
        if isinstance(value, list):
            return [call for item in value for call in self._calls(item)]
        if not isinstance(value, dict):
            return []
        name, arguments = value.get(self.name_key), value.get(self.arguments_key)
        if isinstance(arguments, str):
            arguments = next(iter(_objects(arguments)), None)
        if not isinstance(name, str) or not isinstance(arguments, dict):
            return []
        return [ToolCall(name, arguments, str(value.get("id", "")))]


def _objects(text: str) -> list[Any]:
    """Read the JSON values that `text` begins with, one after the other."""
    decoder = json.JSONDecoder()
    values: list[Any] = []
    at = 0
    while True:
        while at < len(text) and text[at] in " \r\n\t;,":
            at += 1
        try:
            value, at = decoder.raw_decode(text, at)
        except ValueError:
            return values
        values.append(value)
