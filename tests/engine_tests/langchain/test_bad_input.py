"""Bad input through LangChain: errors that name the field, and an engine that stays usable."""

import os
import resource
import sqlite3
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from langchain_core.documents import Document
from langchain_core.messages import (
    AIMessage,
    BaseMessage,
    ChatMessage,
    FunctionMessage,
    HumanMessage,
    RemoveMessage,
    SystemMessage,
)
from langchain_core.prompts import PromptTemplate
from langchain_core.retrievers import BaseRetriever
from langchain_core.runnables import RunnablePassthrough
from pydantic import ValidationError

from centroidkv import Engine
from centroidkv.errors import ConfigError, ContextTooLong
from centroidkv.langchain import CentroidKVLLM, CentroidKVRetriever, ChatCentroidKV
from langchain_parts import (
    ASKED,
    WordRetriever,
    build_and_warm,
    chat_chain,
    joined,
    pinned,
    usage_of,
)
from word_bank import PASSAGES

KINDS = [ChatCentroidKV, CentroidKVLLM]


@pytest.fixture
def warm(engine: Engine) -> Engine:
    build_and_warm(engine, chat_chain(engine).invoke)
    return engine


async def fails_in_every_way(model: Any, given: Any, error: type, match: str) -> None:
    """Invoke, stream and batch, synchronously and not: the same error each time."""
    with pytest.raises(error, match=match):
        model.invoke(given)
    with pytest.raises(error, match=match):
        list(model.stream(given))
    with pytest.raises(error, match=match):
        model.batch([given])
    with pytest.raises(error, match=match):
        await model.ainvoke(given)
    with pytest.raises(error, match=match):
        [c async for c in model.astream(given)]


# messages

IMAGE = {"type": "image_url", "image_url": {"url": "https://example.org/a.png"}}


@pytest.mark.parametrize(
    ("messages", "match"),
    [
        ([], "messages is empty"),
        ([SystemMessage("x")], "only system messages"),
        ([HumanMessage([IMAGE])], r"messages\[0\].content .*image_url"),
        (
            [
                HumanMessage("x"),
                AIMessage("y"),
                HumanMessage([{"type": "text", "text": "a"}, IMAGE]),
            ],
            r"messages\[2\].content .*image_url",
        ),
        ([HumanMessage([{"text": "a part without a type"}])], r"messages\[0\].content"),
        ([FunctionMessage(name="f", content="x")], "FunctionMessage"),
        ([HumanMessage("x"), RemoveMessage(id="1")], "RemoveMessage"),
    ],
)
async def test_messages_that_cannot_be_rendered_are_named(
    engine: Engine, messages: list[BaseMessage], match: str
) -> None:
    chat = ChatCentroidKV(engine=engine, max_tokens=2)
    await fails_in_every_way(chat, messages, ConfigError, match)
    assert usage_of(chat.invoke("x"))["completion_tokens"] == 2


def test_text_in_parts_is_text(engine: Engine) -> None:
    chat = ChatCentroidKV(engine=engine, max_tokens=4)
    parts = [{"type": "text", "text": "a "}, "prompt"]
    assert chat.invoke([HumanMessage(parts)]).content == chat.invoke("a prompt").content


def test_a_chat_message_has_the_role_that_it_names(engine: Engine) -> None:
    chat = ChatCentroidKV(engine=engine, max_tokens=4)
    named = chat.invoke([ChatMessage(role="user", content="a prompt")])
    assert named.content == chat.invoke("a prompt").content


async def test_an_empty_prompt_is_named(engine: Engine) -> None:
    await fails_in_every_way(CentroidKVLLM(engine=engine), "", ConfigError, "the prompt is empty")


@pytest.mark.parametrize("kind", KINDS)
def test_what_is_no_input_at_all_is_langchains_own_error(engine: Engine, kind: type) -> None:
    for given in (None, 5):
        with pytest.raises(ValueError, match="Invalid input type"):
            kind(engine=engine).invoke(given)


# settings

WRONG = [
    ("max_tokens", 0),
    ("max_tokens", -1),
    ("max_tokens", "many"),
    ("max_tokens", 2.5),
    ("temperature", -0.1),
    ("temperature", "hot"),
    ("temperature", float("nan")),
    ("top_p", 0),
    ("top_p", 1.5),
    ("top_p", "all"),
    ("seed", -1),
    ("seed", "x"),
    ("timeout", 0),
    ("timeout", -1),
    ("stop", [""]),
    ("stop", ["end", ""]),
    ("stop", "end"),
    ("stop", [1]),
    ("reuse", "maybe"),
    ("tenant", 5),
]


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(("name", "value"), WRONG)
def test_a_wrong_setting_of_a_call_is_named(
    engine: Engine, kind: type, name: str, value: Any
) -> None:
    model = kind(engine=engine, max_tokens=2)
    with pytest.raises(ConfigError, match=f"^{name} must"):
        model.invoke("x", **{name: value})
    with pytest.raises(ConfigError, match=f"^{name} must"):
        list(model.stream("x", **{name: value}))
    assert model.invoke("x") is not None
    assert engine.check().is_clean


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("max_tokens", "many"),
        ("max_tokens", 2.5),
        ("temperature", "hot"),
        ("top_p", "all"),
        ("top_p", None),
        ("seed", "x"),
        ("stop", "end"),
        ("stop", [1]),
        ("reuse", "maybe"),
        ("engine", "an engine"),
        ("max_token", 3),
        ("chat_templat", False),
    ],
)
def test_a_wrong_type_or_name_is_refused_at_construction(
    engine: Engine, kind: type, name: str, value: Any
) -> None:
    with pytest.raises(ValidationError, match=name):
        kind(**{"engine": engine, name: value})


@pytest.mark.parametrize("kind", KINDS)
def test_unknown_arguments_of_a_call_are_named_with_those_known(engine: Engine, kind: type) -> None:
    model = kind(engine=engine, max_tokens=2)
    with pytest.raises(ConfigError, match=r"unknown argument max_token; .*max_tokens"):
        model.invoke("x", max_token=3)
    with pytest.raises(ConfigError, match="unknown argument engine"):
        model.bind(engine=engine).invoke("x")


@pytest.mark.parametrize("kind", KINDS)
def test_a_policy_that_is_not_known_is_named(engine: Engine, kind: type) -> None:
    with pytest.raises(ConfigError, match="reuse must be"):
        kind(engine=engine).invoke("x", reuse="fuzzy")


@pytest.mark.parametrize(
    "arguments", [{"base": "no retriever"}, {}, {"base": WordRetriever(), "bse": 1}]
)
def test_a_wrong_retriever_is_refused_at_construction(
    engine: Engine, arguments: dict[str, Any]
) -> None:
    with pytest.raises(ValidationError, match="bse" if "bse" in arguments else "base"):
        CentroidKVRetriever(engine=engine, **arguments)


# what the base retriever does


class OddRetriever(BaseRetriever):
    """Returns, or raises, what it is told."""

    result: Any

    def _get_relevant_documents(self, query: str, *, run_manager: Any) -> list[Document]:
        if isinstance(self.result, BaseException):
            raise self.result
        return self.result


class OutageError(Exception):
    """The user's own search is down."""


async def test_the_base_retrievers_own_error_reaches_the_caller_unchanged(warm: Engine) -> None:
    outage = OutageError("the index is down")
    chain = chat_chain(warm, base=OddRetriever(result=outage))
    caught: list[BaseException] = []
    for run in (
        lambda: chain.invoke(ASKED),
        lambda: list(chain.stream(ASKED)),
        lambda: chain.batch([ASKED, ASKED]),
        lambda: pinned(warm, OddRetriever(result=outage)).invoke(ASKED),
    ):
        with pytest.raises(OutageError) as raised:
            run()
        caught.append(raised.value)
    with pytest.raises(OutageError) as raised:
        await chain.ainvoke(ASKED)
    caught.append(raised.value)
    with pytest.raises(OutageError) as raised:
        [c async for c in chain.astream(ASKED)]
    caught.append(raised.value)
    assert all(error is outage for error in caught)
    assert usage_of(chat_chain(warm).invoke(ASKED))["outcome"] == "hit"
    assert warm.check().is_clean


def documents(*texts: str) -> list[Document]:
    return [Document(page_content=text) for text in texts]


@pytest.mark.parametrize(
    ("found", "behind"),
    [
        ([], []),
        (documents(PASSAGES["card"], PASSAGES["card"]), []),
        (documents("one", "one"), ["one"]),
        (documents(""), [""]),
        (documents("  "), ["  "]),
        (documents("broken \ud800 text"), ["broken \ud800 text"]),
        ([Document(page_content="text", metadata={"odd": object()})], ["text"]),
    ],
)
def test_odd_finds_stand_behind_the_pins(
    warm: Engine, found: list[Document], behind: list[str]
) -> None:
    base = OddRetriever(result=found)
    composed = pinned(warm, base).invoke(ASKED)
    assert [d.page_content for d in composed[:1]] == [PASSAGES["card"]]
    assert [d.page_content for d in composed[1:]] == behind
    done = chat_chain(warm, base=base).invoke(ASKED)
    assert usage_of(done)["reused_tokens"] > 200
    assert done.content == chat_chain(warm, base=base, reuse="off").invoke(ASKED).content
    assert warm.check().is_clean


def test_what_another_cluster_pins_comes_first_without_its_double(warm: Engine) -> None:
    base = OddRetriever(result=documents(PASSAGES["wire"], PASSAGES["wire"]))
    assert [d.page_content for d in pinned(warm, base).invoke(ASKED)] == [PASSAGES["wire"]]
    done = chat_chain(warm, base=base).invoke(ASKED)
    assert usage_of(done)["reused_tokens"] > 200
    assert done.content == chat_chain(warm, base=base, reuse="off").invoke(ASKED).content


@pytest.mark.parametrize("found", [[], documents(""), documents("one", "one")])
def test_odd_finds_without_a_plan_are_what_they_are(engine: Engine, found: list[Document]) -> None:
    base = OddRetriever(result=found)
    assert pinned(engine, base).invoke(ASKED) == found[:1]
    chat_chain(engine, base=base).invoke(ASKED)
    assert engine.check().is_clean


# the question


@pytest.mark.parametrize("question", ["", "   ", "\n\n", "\ud800", "?" * 50])
def test_an_odd_question_is_answered_as_without_reuse(warm: Engine, question: str) -> None:
    done = chat_chain(warm).invoke(question)
    assert done.content == chat_chain(warm, reuse="off").invoke(question).content
    assert usage_of(done)["completion_tokens"] == 8
    warm.flush()
    assert warm.check().is_clean


@pytest.mark.parametrize("kind", KINDS)
def test_text_that_is_not_valid_unicode_is_answered(engine: Engine, kind: type) -> None:
    model = kind(engine=engine, max_tokens=4)
    broken, mended = model.invoke("a \ud800 b"), model.invoke("a ? b")
    assert getattr(broken, "content", broken) == getattr(mended, "content", mended)
    stopped = model.invoke("a prompt", stop=["\ud800"], question="\udfff")
    plain = model.invoke("a prompt")
    assert getattr(stopped, "content", stopped) == getattr(plain, "content", plain)


@pytest.mark.parametrize("kind", KINDS)
async def test_a_prompt_beyond_the_context_says_how_long_it_is(engine: Engine, kind: type) -> None:
    model = kind(engine=engine, max_tokens=2)
    await fails_in_every_way(model, "a" * 9000, ContextTooLong, r"9,\d\d\d tokens.*4,096")
    assert model.invoke("x") is not None
    assert engine.check().is_clean


async def test_a_question_beyond_the_context_says_how_long_it_is(warm: Engine) -> None:
    await fails_in_every_way(chat_chain(warm), "why " * 3000, ContextTooLong, "4,096")
    assert usage_of(chat_chain(warm).invoke(ASKED))["outcome"] == "hit"


def test_a_question_before_its_context_is_said_once(warm: Engine, caplog) -> None:
    prompt = PromptTemplate.from_template("Question: {question}\n\nContext:\n{context}")
    chat = ChatCentroidKV(engine=warm, max_tokens=2)
    context = pinned(warm) | joined
    chain = {"context": context, "question": RunnablePassthrough()} | prompt | chat
    reasons = [usage_of(chain.invoke(q))["reason"] for q in (ASKED, "is my lost card blocked")]
    assert reasons == ["question_before_context"] * 2
    warned = [r.message for r in caplog.records if r.levelname == "WARNING"]
    assert len(warned) == 1
    assert "put the context first and the question last" in warned[0]


# a closed engine


@pytest.mark.parametrize("kind", KINDS)
async def test_a_closed_engine_is_named(engine: Engine, kind: type) -> None:
    model = kind(engine=engine)
    engine.close()
    await fails_in_every_way(model, "x", ConfigError, "the engine is closed")


async def test_a_retriever_over_a_closed_engine_says_so(engine: Engine) -> None:
    retriever = pinned(engine)
    engine.close()
    with pytest.raises(ConfigError, match="the engine is closed"):
        retriever.invoke("x")
    with pytest.raises(ConfigError, match="the engine is closed"):
        await retriever.ainvoke("x")


# loading ahead


@pytest.fixture
def cold(open_engine: Callable[..., Engine], tmp_path: Path) -> Callable[..., tuple[Engine, str]]:
    """Open a warm store with empty memory; return it and the answer that it must give."""
    with open_engine() as first:
        build_and_warm(first, chat_chain(first).invoke)
        expected = chat_chain(first, reuse="off").invoke(ASKED).content

    def opening(**options: Any) -> tuple[Engine, str]:
        return open_engine(tmp_path / "store", **options), expected

    return opening


@pytest.mark.parametrize("harm", ["truncate", "delete", "empty", "foreign"])
def test_damaged_files_met_while_loading_ahead_cost_time_alone(
    cold, tmp_path: Path, harm: str
) -> None:
    for path in (tmp_path / "store").glob("blocks/*/*.safetensors"):
        if harm == "truncate":
            os.truncate(path, path.stat().st_size // 2)
        elif harm == "delete":
            path.unlink()
        else:
            path.write_bytes(b"" if harm == "empty" else b"\x02\0\0\0\0\0\0\0{}")
    engine, expected = cold()
    done = chat_chain(engine).invoke(ASKED)
    assert done.content == expected
    assert usage_of(done)["outcome"] == "miss"
    assert usage_of(chat_chain(engine).invoke(ASKED))["outcome"] == "hit"
    engine.check(repair=True)
    assert engine.check().is_clean


def test_a_manifest_that_cannot_tell_what_to_load_costs_time_alone(
    cold, tmp_path: Path, caplog
) -> None:
    engine, expected = cold()
    db = sqlite3.connect(tmp_path / "store/manifest.sqlite")
    db.execute("ALTER TABLE prefixes RENAME TO elsewhere")
    done = chat_chain(engine).invoke(ASKED)
    engine.store.prefetcher.close()
    db.execute("ALTER TABLE elsewhere RENAME TO prefixes")
    db.close()
    assert (done.content, usage_of(done)["outcome"]) == (expected, "hit")
    assert [r for r in caplog.records if "not loaded ahead" in r.message]
    assert engine.stats().counters["failed_prefetches"] == 1


def test_a_memory_without_room_for_what_is_loaded_ahead_costs_time_alone(cold) -> None:
    engine, expected = cold(memory_budget_bytes=0)
    done = chat_chain(engine).invoke(ASKED)
    assert (done.content, usage_of(done)["outcome"]) == (expected, "hit")
    assert usage_of(done)["tier"] == "disk"
    assert engine.check().is_clean


def test_a_full_disk_while_loading_ahead_costs_time_alone(cold) -> None:
    engine, expected = cold()
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (0, hard))
    try:
        done = chat_chain(engine).invoke(ASKED)
        engine.flush()
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert (done.content, usage_of(done)["outcome"]) == (expected, "hit")
    assert chat_chain(engine).invoke(ASKED).content == expected
    assert engine.check().is_clean


def test_a_role_of_nobodys_is_named(engine: Engine) -> None:
    chat = ChatCentroidKV(engine=engine, max_tokens=2)
    with pytest.raises(ConfigError, match=r"messages\[1\].role is 'narrator'.*known: assistant"):
        chat.invoke([HumanMessage("x"), ChatMessage("y", role="narrator")])
    assert chat.invoke([ChatMessage("x", role="human")]).content == chat.invoke("x").content
