"""Reading tool calls out of answers, in the forms chat templates write them."""

import json

import pytest

from centroidkv.tool_calls import ToolCall, ToolFormat

HERMES = ToolFormat("<tool_call>\n", "</tool_call>", "name", "arguments")
BARE = ToolFormat("", "", "name", "parameters")
LISTED = ToolFormat("[TOOL_CALLS] [", "]", "name", "arguments")


def call(fmt: ToolFormat, name: str, **arguments: object) -> str:
    body = json.dumps({fmt.name_key: name, fmt.arguments_key: arguments})
    return f"{fmt.lead}{body}{fmt.closer}"


@pytest.mark.parametrize("fmt", [HERMES, BARE, LISTED], ids=["hermes", "bare", "listed"])
def test_a_call_is_read_back(fmt: ToolFormat) -> None:
    answer = fmt.read(call(fmt, "block_card", card="debit", days=3))
    assert answer.calls == (ToolCall("block_card", {"card": "debit", "days": 3}),)
    assert answer.content == ""
    assert answer.invalid == ()


@pytest.mark.parametrize("text", ["", "Plain text.", "{not json", "[1, 2]", '{"name": "x"}', "{}"])
def test_what_holds_no_call_is_returned_as_it_is(text: str) -> None:
    for fmt in (HERMES, BARE, LISTED):
        answer = fmt.read(text)
        assert (answer.content, answer.calls, answer.invalid) == (text, (), ())


def test_text_before_and_several_calls() -> None:
    text = "I will do both.\n" + call(HERMES, "one", a=1) + "\n" + call(HERMES, "two")
    answer = HERMES.read(text)
    assert answer.content == "I will do both."
    assert [c.name for c in answer.calls] == ["one", "two"]


def test_a_list_without_its_mark_is_read() -> None:
    text = '[{"name": "one", "arguments": {"a": 1}, "id": "abc123def"}, {"name": "two", '
    text += '"arguments": "{\\"b\\": 2}"}]'
    answer = LISTED.read(text)
    assert answer.calls == (ToolCall("one", {"a": 1}, "abc123def"), ToolCall("two", {"b": 2}))


def test_a_broken_call_is_kept_as_invalid() -> None:
    answer = HERMES.read('Well. <tool_call>\n{"name": "one", "argu')
    assert answer.content == "Well."
    assert answer.calls == ()
    assert answer.invalid == ('{"name": "one", "argu',)


@pytest.mark.parametrize(
    ("text", "possible"),
    [("", True), ("  <tool", True), ("<tool_call>{", True), ("{", True), ("Hello", False)],
)
def test_whether_an_answer_may_become_a_call(text: str, *, possible: bool) -> None:
    assert HERMES.may_begin(text) is possible


def test_a_forced_call_continues_into_a_whole_one() -> None:
    start = HERMES.start("block_card")
    assert HERMES.read(start + ' {"card": "debit"}}').calls == (
        ToolCall("block_card", {"card": "debit"}),
    )
    any_tool = BARE.start(None)
    assert BARE.read(any_tool + ' "pay", "parameters": {}}').calls == (ToolCall("pay", {}),)
