"""Chat messages to text: the tokenizer's own template, with what would spoil reuse held still.

Knows templates, not token ids. A template is asked what it can do by rendering probes with it:
nothing is guessed from a model's name.
"""

import json
import logging
from collections.abc import Mapping, Sequence
from dataclasses import replace
from datetime import date, datetime
from typing import Any

from transformers import PreTrainedTokenizerBase

from centroidkv.errors import ModelError
from centroidkv.tool_calls import Tool, ToolCall, ToolFormat
from centroidkv.types import Message, valid_text

TEMPLATE_DATE = date(2025, 1, 1)

_log = logging.getLogger("centroidkv")

_DATE = "strftime_now"
_DIRECTIVES = [f"%{flag}{letter}" for letter in "aAbBcdHIjmMpSUwWxXyY" for flag in ("-", "")]

_PROBE_CALL = ToolCall("probe_tool", {"probe_key": "probe_value"}, "probe0001")
_PROBE_TOOL: Tool = {
    "type": "function",
    "function": {
        "name": "probe_tool",
        "description": "A probe.",
        "parameters": {
            "type": "object",
            "properties": {"probe_key": {"type": "string", "description": "A key."}},
            "required": ["probe_key"],
        },
    },
}

__all__ = ["TEMPLATE_DATE", "ChatRenderer"]


class ChatRenderer:
    """Renders messages with a tokenizer's chat template.

    Args:
        tokenizer: Its `chat_template` is used as it is at each call.
        today: What the template takes for today; None for the real date, with which prompts
            stop beginning alike at midnight.
    """

    def __init__(self, tokenizer: PreTrainedTokenizerBase, *, today: date | None) -> None:
        self._tokenizer = tokenizer
        self._today = today
        self._formats: dict[str, ToolFormat | None] = {}
        if self.prints_date and today == TEMPLATE_DATE:
            _log.warning(
                "the chat template prints the date; it is pinned to %s so that prompts begin "
                "alike every day; set template_date to choose another",
                today,
            )

    @property
    def prints_date(self) -> bool:
        """Whether the template asks what day it is."""
        return _DATE in str(self._tokenizer.chat_template or "")

    @property
    def tool_format(self) -> ToolFormat | None:
        """How the template writes a tool call; None when it knows no tools."""
        template = str(self._tokenizer.chat_template or "")
        if template not in self._formats:
            self._formats[template] = self._find_tool_format() if "tools" in template else None
        return self._formats[template]

    def render(self, turns: Sequence[Message], tools: Sequence[Tool] = ()) -> str:
        """Render messages up to where the answer begins.

        Consecutive turns of one role are joined where the template refuses them.

        Raises:
            ModelError: There is no template, it refuses the messages, or it knows no tools.
        """
        if not self._tokenizer.chat_template:
            raise ModelError("the tokenizer has no chat template; send plain text instead")
        if tools and self.tool_format is None:
            raise ModelError(
                "the model's chat template knows no tools, or writes their calls in a form that "
                "is not JSON; use a model whose template does, or describe them in the prompt"
            )
        turns = [replace(turn, content=valid_text(turn.content)) for turn in turns]
        try:
            return self._apply(turns, tools)
        except ModelError:
            merged = _merged(turns)
            if len(merged) == len(turns):
                raise
            return self._apply(merged, tools)

    def _apply(
        self, turns: Sequence[Message], tools: Sequence[Tool], *, answer_follows: bool = True
    ) -> str:
        schemas: Any = [dict(tool) for tool in tools] or None
        try:
            template = self._tokenizer.get_chat_template(tools=schemas)
            if self._today is not None and _DATE in template:
                template = _dated(self._today) + template
            text = self._tokenizer.apply_chat_template(
                [_as_dict(turn) for turn in turns],
                tools=schemas,
                chat_template=template,
                add_generation_prompt=answer_follows,
                tokenize=False,
            )
        except Exception as error:
            # Jinja raises what the template's author chose; it is the message that matters.
            raise ModelError(f"the chat template refuses these messages: {error}") from error
        return str(text)

    def _find_tool_format(self) -> ToolFormat | None:
        """Render a conversation with a known call and look at what the template made of it."""
        asked = [Message("user", "probe")]
        called = [*asked, Message("assistant", "", (_PROBE_CALL,))]
        try:
            before = self._apply(asked, [_PROBE_TOOL])
            whole = self._apply(called, [_PROBE_TOOL], answer_follows=False)
            ignored = self._apply(asked, [])
        except ModelError:
            return None
        if before == ignored or not whole.startswith(before):
            return None
        return _format_of(whole[len(before) :])


def _dated(today: date) -> str:
    """Return a macro that takes the place of the date function which templates call.

    Templates are given plain data only, no functions, so the directives are filled in by the
    macro. What follows a block tag must not be a line break, hence the empty expression.
    """
    moment = datetime(today.year, today.month, today.day)
    filled = "".join(f"|replace('{d}', '{moment.strftime(d)}')" for d in _DIRECTIVES)
    return f"{{% macro {_DATE}(format) %}}{{{{ format{filled} }}}}{{% endmacro %}}{{{{ '' }}}}"


def _format_of(body: str) -> ToolFormat | None:
    """Find the probe's JSON object in what the template wrote for it."""
    decoder = json.JSONDecoder()
    for start, char in enumerate(body):
        if char != "{":
            continue
        try:
            value, end = decoder.raw_decode(body, start)
        except ValueError:
            continue
        name = _key_of(value, _PROBE_CALL.name)
        arguments = _key_of(value, _PROBE_CALL.arguments) or _key_of(
            value, json.dumps(_PROBE_CALL.arguments)
        )
        if name and arguments:
            return ToolFormat(body[:start], _first_line(body[end:]), name, arguments)
    return None


def _key_of(value: Mapping[str, Any], wanted: object) -> str:
    return next((k for k, v in value.items() if v == wanted), "")


def _first_line(text: str) -> str:
    """Return the closing mark of a call, which ends before the model's own end of turn."""
    return text.strip().split("\n")[0].split("<|")[0].split("</s>")[0].strip()


def _as_dict(turn: Message) -> dict[str, Any]:
    given: dict[str, Any] = {"role": turn.role, "content": turn.content}
    if turn.tool_calls:
        given["tool_calls"] = [
            {
                "id": call.id,
                "type": "function",
                "function": {"name": call.name, "arguments": dict(call.arguments)},
            }
            for call in turn.tool_calls
        ]
    if turn.tool_call_id:
        given["tool_call_id"] = turn.tool_call_id
    if turn.name:
        given["name"] = turn.name
    return given


def _merged(turns: Sequence[Message]) -> list[Message]:
    """Join consecutive plain turns of one role, which some templates refuse."""
    merged: list[Message] = []
    for turn in turns:
        before = merged[-1] if merged else None
        is_plain = turn.role != "tool" and not turn.tool_calls
        if before is not None and is_plain and before.role == turn.role and not before.tool_calls:
            merged[-1] = Message(turn.role, f"{before.content}\n\n{turn.content}")
        else:
            merged.append(turn)
    return merged
