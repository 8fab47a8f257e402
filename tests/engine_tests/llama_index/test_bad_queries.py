"""Bad input through LlamaIndex: errors that name the field, and an engine that stays usable."""

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from llama_index.core import PromptTemplate, get_response_synthesizer
from llama_index.core.base.llms.types import ImageBlock, TextBlock
from llama_index.core.llms import ChatMessage
from llama_index.core.query_engine import RetrieverQueryEngine
from llama_index.core.schema import NodeWithScore, QueryBundle, TextNode
from pydantic import ValidationError

from centroidkv import Engine
from centroidkv.errors import ConfigError, ContextTooLong
from centroidkv.llama_index import CentroidKVLLM, CentroidKVPostprocessor
from llama_index_parts import ASKED, WordRetriever, build_and_warm, query_engine
from word_bank import PASSAGES


@pytest.fixture
def warm(engine: Engine) -> Engine:
    build_and_warm(engine, query_engine(engine).query)
    return engine


@pytest.fixture
def llm(engine: Engine) -> CentroidKVLLM:
    return CentroidKVLLM(engine=engine, max_tokens=4)


async def completing_fails(llm: CentroidKVLLM, prompt: Any, error: type, match: str) -> None:
    """Complete in all four ways: the same error each time."""
    with pytest.raises(error, match=match):
        llm.complete(prompt)
    with pytest.raises(error, match=match):
        list(llm.stream_complete(prompt))
    with pytest.raises(error, match=match):
        await llm.acomplete(prompt)
    with pytest.raises(error, match=match):
        [r async for r in await llm.astream_complete(prompt)]


async def chatting_fails(
    llm: CentroidKVLLM, messages: list[ChatMessage], error: type, match: str
) -> None:
    """Chat in all four ways: the same error each time."""
    with pytest.raises(error, match=match):
        llm.chat(messages)
    with pytest.raises(error, match=match):
        list(llm.stream_chat(messages))
    with pytest.raises(error, match=match):
        await llm.achat(messages)
    with pytest.raises(error, match=match):
        [r async for r in await llm.astream_chat(messages)]


# prompts and messages


async def test_an_empty_prompt_is_named(llm: CentroidKVLLM) -> None:
    await completing_fails(llm, "", ConfigError, "the prompt is empty")


async def test_no_messages_are_named(llm: CentroidKVLLM) -> None:
    await chatting_fails(llm, [], ConfigError, "messages is empty")


async def test_content_that_is_not_text_is_named(llm: CentroidKVLLM) -> None:
    image = ImageBlock(url="https://example.org/a.png")
    messages = [
        ChatMessage(role="user", content="look"),
        ChatMessage(role="user", blocks=[TextBlock(text="at this"), image]),
    ]
    await chatting_fails(llm, messages, ConfigError, r"messages\[1\] holds ImageBlock")
    assert llm.complete("x").text


async def test_a_prompt_beyond_the_context_says_how_long_it_is(llm: CentroidKVLLM) -> None:
    long = "a" * 9000
    await completing_fails(llm, long, ContextTooLong, r"9,\d\d\d tokens.*4,096")
    await chatting_fails(llm, [ChatMessage(content=long)], ContextTooLong, "4,096")
    assert llm.complete("x").text
    assert llm.kv.check().is_clean


def test_text_that_is_not_valid_unicode_is_answered(llm: CentroidKVLLM) -> None:
    assert llm.complete("a \ud800 b").text == llm.complete("a ? b").text
    broken = llm.chat([ChatMessage(role="user", content="a \ud800 b")])
    assert broken.message.content == llm.complete("a ? b").text
    stopped = llm.complete("a prompt", stop=["\ud800"], question="\udfff")
    assert stopped.text == llm.complete("a prompt").text


# settings


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("max_tokens", 0),
        ("max_tokens", -1),
        ("max_tokens", "many"),
        ("max_tokens", None),
        ("temperature", -0.1),
        ("temperature", "hot"),
        ("temperature", float("nan")),
        ("top_p", 0),
        ("top_p", 1.5),
        ("seed", -1),
        ("seed", "x"),
        ("timeout", 0),
        ("stop", [""]),
        ("stop", "end"),
        ("stop", [1]),
        ("reuse", "maybe"),
        ("tenant", 5),
    ],
)
def test_a_wrong_setting_of_a_call_is_named(llm: CentroidKVLLM, name: str, value: Any) -> None:
    with pytest.raises(ConfigError, match=f"^{name} must"):
        llm.complete("x", **{name: value})
    with pytest.raises(ConfigError, match=f"^{name} must"):
        list(llm.stream_chat([ChatMessage(content="x")], **{name: value}))
    assert llm.complete("x").text
    assert llm.kv.check().is_clean


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("max_tokens", "many"),
        ("max_tokens", None),
        ("temperature", "hot"),
        ("top_p", "all"),
        ("seed", "x"),
        ("stop", "end"),
        ("stop", [1]),
        ("reuse", "maybe"),
        ("engine", "an engine"),
        ("max_token", 3),
    ],
)
def test_a_wrong_type_or_name_is_refused_at_construction(
    engine: Engine, name: str, value: Any
) -> None:
    with pytest.raises(ValidationError, match=name):
        CentroidKVLLM(**{"engine": engine, name: value})


def test_a_policy_that_is_not_known_is_named(llm: CentroidKVLLM) -> None:
    with pytest.raises(ConfigError, match="reuse must be"):
        llm.complete("x", reuse="fuzzy")


@pytest.mark.parametrize("arguments", [{"engine": "x"}, {}, {"order": "last"}, {"ordr": "last"}])
def test_a_wrong_postprocessor_is_refused_at_construction(
    engine: Engine, arguments: dict[str, Any]
) -> None:
    name = next(iter(arguments), "engine")
    given = arguments if name == "engine" else {"engine": engine, **arguments}
    with pytest.raises(ValidationError, match=name):
        CentroidKVPostprocessor(**given)


# what the retriever does


class OutageError(Exception):
    """The user's own search is down."""


class Outage(WordRetriever):
    """Raises on every search."""

    def __init__(self, error: Exception) -> None:
        super().__init__()
        self.error = error

    def _retrieve(self, query_bundle: QueryBundle) -> list[NodeWithScore]:
        raise self.error


async def test_the_retrievers_own_error_reaches_the_caller_unchanged(warm: Engine) -> None:
    outage = OutageError("the index is down")
    with pytest.raises(OutageError) as raised:
        query_engine(warm, retriever=Outage(outage)).query(ASKED)
    assert raised.value is outage
    with pytest.raises(OutageError) as raised:
        await query_engine(warm, retriever=Outage(outage)).aquery(ASKED)
    assert raised.value is outage
    with pytest.raises(OutageError) as raised:
        query_engine(warm, retriever=Outage(outage), streaming=True).query(ASKED)
    assert raised.value is outage
    before = warm.stats().counters.get("outcome_hit", 0)
    query_engine(warm).query(ASKED)
    assert warm.stats().counters["outcome_hit"] == before + 1
    assert warm.check().is_clean


def nodes(*texts: str) -> list[NodeWithScore]:
    return [NodeWithScore(node=TextNode(text=t, id_=f"n{i}")) for i, t in enumerate(texts)]


@pytest.mark.parametrize(
    ("found", "behind"),
    [
        ([], []),
        (nodes(PASSAGES["card"], PASSAGES["card"]), []),
        (nodes("one", "one"), ["one"]),
        (nodes(""), [""]),
        (nodes("broken \ud800 text"), ["broken \ud800 text"]),
    ],
)
def test_odd_finds_stand_behind_the_pins(
    warm: Engine, found: list[NodeWithScore], behind: list[str]
) -> None:
    pinning = CentroidKVPostprocessor(engine=warm)
    composed = pinning.postprocess_nodes(found, query_str=ASKED)
    assert [n.node.get_content() for n in composed] == [PASSAGES["card"], *behind]


def test_without_a_query_nothing_is_pinned(warm: Engine) -> None:
    pinning = CentroidKVPostprocessor(engine=warm)
    found = nodes("one", "two")
    assert pinning.postprocess_nodes(found) == found


# the question


@pytest.mark.parametrize("question", ["", "   ", "\ud800", "?" * 50])
def test_an_odd_question_is_answered_as_without_reuse(warm: Engine, question: str) -> None:
    text = str(query_engine(warm).query(question))
    assert text == str(query_engine(warm, reuse="off").query(question)) != ""
    warm.flush()
    assert warm.check().is_clean


def test_a_question_that_is_none_is_llama_indexs_own_error(warm: Engine) -> None:
    with pytest.raises(ValidationError, match="query"):
        query_engine(warm).query(None)


async def test_a_question_beyond_the_context_says_how_long_it_is(warm: Engine) -> None:
    with pytest.raises(ContextTooLong, match="4,096"):
        query_engine(warm).query("why " * 3000)
    with pytest.raises(ContextTooLong, match="4,096"):
        await query_engine(warm).aquery("why " * 3000)
    assert str(query_engine(warm).query(ASKED))


def test_a_question_before_its_context_is_said_once(warm: Engine, caplog) -> None:
    template = PromptTemplate("Question: {query_str}\n\nContext:\n{context_str}")
    llm = CentroidKVLLM(engine=warm, max_tokens=2)
    made = RetrieverQueryEngine(
        retriever=WordRetriever(),
        response_synthesizer=get_response_synthesizer(llm=llm, text_qa_template=template),
        node_postprocessors=[CentroidKVPostprocessor(engine=warm)],
    )
    for question in (ASKED, "is my lost card blocked"):
        made.query(question)
    assert warm.stats().counters["reason_question_before_context"] == 2
    warned = [r.message for r in caplog.records if r.name == "centroidkv"]
    assert len(warned) == 1
    assert "put the context first and the question last" in warned[0]


# a closed engine


async def test_a_closed_engine_is_named(llm: CentroidKVLLM) -> None:
    llm.kv.close()
    await completing_fails(llm, "x", ConfigError, "the engine is closed")
    await chatting_fails(llm, [ChatMessage(content="x")], ConfigError, "the engine is closed")
    pinning = CentroidKVPostprocessor(engine=llm.kv)
    with pytest.raises(ConfigError, match="the engine is closed"):
        pinning.postprocess_nodes(nodes("one"), query_str="x")


# loading ahead


@pytest.mark.parametrize("harm", ["truncate", "delete"])
def test_damaged_files_met_while_loading_ahead_cost_time_alone(
    open_engine: Callable[..., Engine], tmp_path: Path, harm: str
) -> None:
    with open_engine() as first:
        build_and_warm(first, query_engine(first).query)
        expected = str(query_engine(first, reuse="off").query(ASKED))
    for path in (tmp_path / "store").glob("blocks/*/*.safetensors"):
        if harm == "truncate":
            os.truncate(path, path.stat().st_size // 2)
        else:
            path.unlink()
    engine = open_engine()
    assert str(query_engine(engine).query(ASKED)) == expected
    assert engine.stats().counters["outcome_miss"] == 1
    assert str(query_engine(engine).query(ASKED)) == expected
    assert engine.stats().counters["outcome_hit"] == 1
    engine.check(repair=True)
    assert engine.check().is_clean
