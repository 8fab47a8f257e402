"""Tools and structured output, with a model that has learnt one call by heart."""

import json
from collections.abc import Callable

import pytest
from langchain_core.messages import AIMessage, HumanMessage, ToolMessage
from langchain_core.tools import tool
from langchain_core.utils.function_calling import convert_to_openai_tool
from pydantic import BaseModel, ValidationError

from centroidkv import Engine
from centroidkv.errors import ConfigError
from centroidkv.langchain import ChatCentroidKV
from centroidkv.langchain.messages import as_turns
from small_parts import BARE_CALLS, HERMES_CALLS, HashEmbedder, make_llama, make_tokenizer, teach

CALL = '{"name": "block_card", "arguments": {"card": "debit"}}'


@tool
def block_card(card: str) -> str:
    """Block a bank card."""
    return f"{card} card blocked"


class Block(BaseModel):
    """Block a bank card."""

    card: str


def open_taught(path, template: str, prompt: list, tools: list, answer: str, start: str = ""):
    """Open an engine whose model answers `prompt` with `answer`, and no other one usefully."""
    tokenizer = make_tokenizer()
    tokenizer.chat_template = template
    llama = make_llama()
    llama.lm_head.weight.data[:] = llama.lm_head.weight.data.normal_(0, 0.02)
    schemas = [convert_to_openai_tool(t) for t in tools]
    with Engine.open(path / "t", model=llama, tokenizer=tokenizer, embedder=HashEmbedder()) as e:
        ids = e.model.encode(as_turns(prompt), tools=schemas, answer_start=start).token_ids
    learnt = tokenizer(answer + "<|end|>", add_special_tokens=False)["input_ids"]
    teach(llama, ids, learnt)
    return Engine.open(path / "s", model=llama, tokenizer=tokenizer, embedder=HashEmbedder())


PROMPT = [HumanMessage("block my card")]


def test_a_call_comes_back_as_a_tool_call_and_its_result_is_answered(tmp_path) -> None:
    answer = f"<tool_call>\n{CALL}\n</tool_call>"
    with open_taught(tmp_path, HERMES_CALLS, PROMPT, [block_card], answer) as engine:
        chat = ChatCentroidKV(engine=engine, max_tokens=120)
        bound = chat.bind_tools([block_card])
        message = bound.invoke(PROMPT)
        assert [(c["name"], c["args"]) for c in message.tool_calls] == [
            ("block_card", {"card": "debit"})
        ]
        assert message.tool_calls[0]["id"]
        assert message.content == ""
        # The next turn holds the call and its result; the KV of the whole first turn is reused.
        result = block_card.invoke(message.tool_calls[0])
        assert isinstance(result, ToolMessage)
        engine.flush()
        again = bound.invoke([*PROMPT, message, result])
        usage = again.response_metadata["usage"]
        first = message.response_metadata["usage"]
        assert usage["reused_tokens"] >= first["prompt_tokens"]
        off = bound.invoke([*PROMPT, message, result], reuse="off")
        assert off.response_metadata["token_ids"] == again.response_metadata["token_ids"]


@pytest.mark.parametrize("use_async", [False, True])
async def test_a_streamed_call_shows_no_text(tmp_path, *, use_async: bool) -> None:
    answer = f"One moment.<tool_call>\n{CALL}\n</tool_call>"
    with open_taught(tmp_path, HERMES_CALLS, PROMPT, [block_card], answer) as engine:
        bound = ChatCentroidKV(engine=engine, max_tokens=120).bind_tools([block_card])
        if use_async:
            chunks = [c async for c in bound.astream(PROMPT)]
        else:
            chunks = list(bound.stream(PROMPT))
        whole = chunks[0]
        for chunk in chunks[1:]:
            whole += chunk
        assert whole.content == "One moment."
        assert [(c["name"], c["args"]) for c in whole.tool_calls] == [
            ("block_card", {"card": "debit"})
        ]
        assert len(chunks) > 3, "the text before the call was not streamed"
        assert whole.usage_metadata is not None


def test_an_answer_in_words_is_streamed_as_text(tmp_path) -> None:
    answer = "It < costs 5 <tool, no call."
    with open_taught(tmp_path, HERMES_CALLS, PROMPT, [block_card], answer) as engine:
        bound = ChatCentroidKV(engine=engine, max_tokens=60).bind_tools([block_card])
        assert "".join(c.content for c in bound.stream(PROMPT)) == answer
        message = bound.invoke(PROMPT)
        assert message.content == answer
        assert message.tool_calls == message.invalid_tool_calls == []


def test_a_broken_call_is_invalid_not_lost(tmp_path) -> None:
    answer = '<tool_call>\n{"name": "block_card", "argu'
    with open_taught(tmp_path, HERMES_CALLS, PROMPT, [block_card], answer) as engine:
        message = ChatCentroidKV(engine=engine).bind_tools([block_card]).invoke(PROMPT)
        assert message.tool_calls == []
        assert [c["args"] for c in message.invalid_tool_calls] == ['{"name": "block_card", "argu']


@pytest.mark.parametrize("template", [HERMES_CALLS, BARE_CALLS], ids=["hermes", "bare"])
def test_structured_output_is_forced_into_a_call(tmp_path, template: str) -> None:
    from centroidkv.models.rendering import ChatRenderer

    tokenizer = make_tokenizer()
    tokenizer.chat_template = template
    form = ChatRenderer(tokenizer, today=None).tool_format
    assert form is not None
    start = form.start("Block")
    rest = ' {"card": "debit"}}' + (f"\n{form.closer}" if form.closer else "")
    with open_taught(tmp_path, template, PROMPT, [Block], rest, start) as engine:
        chat = ChatCentroidKV(engine=engine, max_tokens=80)
        assert chat.with_structured_output(Block).invoke(PROMPT) == Block(card="debit")
        assert chat.with_structured_output(convert_to_openai_tool(Block)).invoke(PROMPT) == {
            "card": "debit"
        }
        raw = chat.with_structured_output(Block, include_raw=True).invoke(PROMPT)
        assert raw["parsed"] == Block(card="debit")
        assert raw["parsing_error"] is None
        chunks = list(chat.bind_tools([Block], tool_choice="Block").stream(PROMPT))
        assert "".join(c.content for c in chunks) == ""
        pieces = [p for c in chunks for p in c.tool_call_chunks]
        assert json.loads("".join(p["args"] or "" for p in pieces)) == {"card": "debit"}


def test_a_template_without_tools_refuses_at_once(engine: Engine) -> None:
    chat = ChatCentroidKV(engine=engine)
    with pytest.raises(ConfigError, match="chat template knows none"):
        chat.bind_tools([block_card])
    with pytest.raises(ConfigError, match="chat template knows none"):
        chat.with_structured_output(Block)
    with pytest.raises(ConfigError, match="chat template knows none"):
        chat.invoke("hi", tools=[convert_to_openai_tool(block_card)])


@pytest.fixture
def tooled(open_engine: Callable[..., Engine]) -> Engine:
    tokenizer = make_tokenizer()
    tokenizer.chat_template = HERMES_CALLS
    return open_engine(model=make_llama(), tokenizer=tokenizer)


def test_a_choice_must_be_one_of_the_tools(tooled: Engine) -> None:
    chat = ChatCentroidKV(engine=tooled, max_tokens=4)
    with pytest.raises(ConfigError, match=r"tool_choice 'pay' is none of the tools .*block_card"):
        chat.bind_tools([block_card], tool_choice="pay")
    named = {"type": "function", "function": {"name": "block_card"}}
    forced = chat.bind_tools([block_card], tool_choice=named).invoke("hi")
    assert forced.invalid_tool_calls[0]["args"].startswith('{"name": "block_card", "arguments":')
    none = chat.bind_tools([block_card], tool_choice="none").invoke("hi")
    assert none.content == chat.invoke("hi").content


def test_tools_are_counted(tooled: Engine) -> None:
    chat = ChatCentroidKV(engine=tooled)
    plain = chat.get_num_tokens_from_messages(PROMPT)
    assert chat.get_num_tokens_from_messages(PROMPT, [block_card]) > plain + 50


def test_a_turn_of_tools_is_rendered_without_any_bound(tooled: Engine) -> None:
    call = {"name": "block_card", "args": {"card": "debit"}, "id": "abc123def"}
    history = [*PROMPT, AIMessage("", tool_calls=[call]), ToolMessage("done", tool_call_id="x")]
    chat = ChatCentroidKV(engine=tooled, max_tokens=4)
    assert chat.invoke(history).response_metadata["finish_reason"] in ("stop", "length")
    assert chat.get_num_tokens_from_messages(history) > chat.get_num_tokens_from_messages(PROMPT)


def test_what_is_no_schema_is_refused_by_langchain(tooled: Engine) -> None:
    with pytest.raises((ValueError, TypeError, ValidationError)):
        ChatCentroidKV(engine=tooled).bind_tools([42])
