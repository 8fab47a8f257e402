"""Rendering: what a template can do is found by asking it; the date stands still."""

import logging
from datetime import date

import pytest

from centroidkv import Engine
from centroidkv.config import EngineConfig
from centroidkv.errors import ConfigError, ModelError
from centroidkv.models.loading import wrap_model
from centroidkv.models.rendering import ChatRenderer
from centroidkv.tool_calls import ToolCall, ToolFormat
from centroidkv.types import Message
from small_parts import (
    BARE_CALLS,
    DATED,
    HERMES_CALLS,
    LISTED_CALLS,
    TEMPLATE,
    HashEmbedder,
    make_llama,
    make_tokenizer,
)

SCHEMA = {
    "type": "function",
    "function": {"name": "pay", "description": "Pay.", "parameters": {"type": "object"}},
}


def renderer(template: str, today: date | None = date(2025, 1, 1)) -> ChatRenderer:
    tokenizer = make_tokenizer()
    tokenizer.chat_template = template
    return ChatRenderer(tokenizer, today=today)


@pytest.mark.parametrize(
    ("template", "expected"),
    [
        (HERMES_CALLS, ToolFormat("<tool_call>\n", "</tool_call>", "name", "arguments")),
        (BARE_CALLS, ToolFormat("", "", "name", "parameters")),
        (LISTED_CALLS, ToolFormat("[TOOL_CALLS] [", "]", "name", "arguments")),
        (TEMPLATE, None),
    ],
    ids=["hermes", "bare", "listed", "none"],
)
def test_the_form_of_calls_is_read_off_the_template(
    template: str, expected: ToolFormat | None
) -> None:
    assert renderer(template).tool_format == expected


@pytest.mark.parametrize("template", [HERMES_CALLS, BARE_CALLS, LISTED_CALLS])
def test_what_the_template_writes_can_be_read(template: str) -> None:
    room = renderer(template)
    turns = [Message("user", "pay 5"), Message("assistant", "", (ToolCall("pay", {"n": 5}, "i1"),))]
    text = room.render([*turns, Message("tool", "done", tool_call_id="i1", name="pay")], [SCHEMA])
    assert room.tool_format is not None
    before = room.render(turns[:1], [SCHEMA])
    calls = room.tool_format.read(text[len(before) :].split("<|end|>")[0]).calls
    assert [(c.name, c.arguments) for c in calls] == [("pay", {"n": 5})]
    assert "done" in text


def test_a_template_that_mentions_tools_but_ignores_them_knows_none() -> None:
    room = renderer("{# tools are ignored #}" + TEMPLATE)
    assert room.tool_format is None
    with pytest.raises(ModelError, match="knows no tools"):
        room.render([Message("user", "hi")], [SCHEMA])


def test_a_printed_date_is_pinned_and_said_once(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING, "centroidkv"):
        room = renderer(DATED)
    assert "Today is 01 Jan 2025." in room.render([Message("user", "hi")])
    assert sum("prints the date" in r.message for r in caplog.records) == 1
    chosen = renderer(DATED, date(2026, 3, 4))
    assert "Today is 04 Mar 2026." in chosen.render([Message("user", "hi")])


def test_the_real_date_is_printed_where_it_is_wanted() -> None:
    text = renderer(DATED, None).render([Message("user", "hi")])
    assert date.today().strftime("%d %b %Y") in text


def test_the_date_is_a_setting_of_the_engine(tmp_path) -> None:
    tokenizer = make_tokenizer()
    tokenizer.chat_template = DATED
    with Engine.open(
        tmp_path / "s",
        model=make_llama(),
        tokenizer=tokenizer,
        embedder=HashEmbedder(),
        template_date="2024-12-24",
    ) as engine:
        assert "24 Dec 2024" in engine.model.encode("hi").text
    assert EngineConfig(template_date="today").pinned_date is None
    for wrong in ("tomorrow", "24.12.2024", None, 3):
        with pytest.raises(ConfigError, match="template_date must be a date"):
            EngineConfig(template_date=wrong)  # type: ignore[arg-type]


def test_an_undated_template_says_nothing(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING, "centroidkv"):
        wrap_model(make_llama(), make_tokenizer())
    assert caplog.records == []
