"""The adapters inside LangChain's and LangGraph's own constructs, on a random model."""

import asyncio
import itertools
from collections import Counter
from collections.abc import Callable
from typing import Any, TypedDict

import pytest
from langchain_classic.chains import create_retrieval_chain
from langchain_classic.chains.combine_documents import create_stuff_documents_chain
from langchain_core.callbacks import AsyncCallbackHandler, BaseCallbackHandler
from langchain_core.chat_history import InMemoryChatMessageHistory
from langchain_core.documents import Document
from langchain_core.exceptions import OutputParserException
from langchain_core.load import dumpd, dumps
from langchain_core.messages import AIMessage
from langchain_core.prompts import ChatPromptTemplate, MessagesPlaceholder
from langchain_core.runnables import ConfigurableField, Runnable, RunnableLambda
from langchain_core.runnables.history import RunnableWithMessageHistory
from langgraph.graph import END, START, StateGraph

from centroidkv import Engine
from centroidkv.errors import ContextTooLong
from centroidkv.langchain import CentroidKVLLM, CentroidKVRetriever, ChatCentroidKV
from centroidkv.models.loading import wrap_model
from langchain_parts import (
    ASKED,
    PROMPT,
    WordRetriever,
    build_and_warm,
    chat_chain,
    joined,
    pinned,
    usage_of,
)
from small_parts import make_llama, make_tokenizer
from word_bank import PASSAGES, QUESTIONS


@pytest.fixture
def warm(engine: Engine) -> Engine:
    build_and_warm(engine, chat_chain(engine).invoke)
    return engine


# a conversation with a history


def conversation(engine: Engine, **options: Any) -> tuple[Runnable, InMemoryChatMessageHistory]:
    prompt = ChatPromptTemplate.from_messages(
        [
            ("system", f"Answer from this.\n\n{PASSAGES['card']}"),
            MessagesPlaceholder("history"),
            ("human", "{question}"),
        ]
    )
    history = InMemoryChatMessageHistory()
    chain = RunnableWithMessageHistory(
        prompt | ChatCentroidKV(engine=engine, max_tokens=8, **options),
        lambda _: history,
        input_messages_key="question",
        history_messages_key="history",
    )
    return chain, history


# LangChain keeps these until its next major version and so do many chains.
deprecated = pytest.mark.filterwarnings(
    "ignore::langchain_core._api.deprecation.LangChainDeprecationWarning"
)
TURNS = ["how do I block a card", "and when does a new one arrive", "thank you"]
SESSION = {"configurable": {"session_id": "one"}}


@deprecated
def test_the_next_turn_of_a_history_computes_only_what_is_new(engine: Engine) -> None:
    chain, history = conversation(engine)
    answers = [chain.invoke({"question": turn}, SESSION) for turn in TURNS]
    plain, _ = conversation(engine, reuse="off")
    assert [a.content for a in answers] == [
        plain.invoke({"question": turn}, SESSION).content for turn in TURNS
    ]
    for before, after in itertools.pairwise(answers):
        known = before.usage_metadata["total_tokens"] - 1  # the last token was never run
        assert after.usage_metadata["input_token_details"]["cache_read"] == known
    said = [m.content for m in history.messages]
    assert said[::2] == TURNS and said[1::2] == [a.content for a in answers]
    assert engine.check().is_clean


@deprecated
async def test_a_history_serves_async_turns_too(engine: Engine) -> None:
    chain, _ = conversation(engine)
    first = await chain.ainvoke({"question": TURNS[0]}, SESSION)
    chunks = [c async for c in chain.astream({"question": TURNS[1]}, SESSION)]
    reused = chunks[-1].usage_metadata["input_token_details"]["cache_read"]
    assert reused == first.usage_metadata["total_tokens"] - 1


# a graph


class State(TypedDict, total=False):
    question: str
    context: str
    answer: AIMessage


def graph_of(engine: Engine, **options: Any) -> Any:
    retriever = pinned(engine)
    chat = ChatCentroidKV(engine=engine, max_tokens=8, **options)

    def retrieve(state: State) -> State:
        return {"context": joined(retriever.invoke(state["question"]))}

    async def aretrieve(state: State) -> State:
        return {"context": joined(await retriever.ainvoke(state["question"]))}

    def answer(state: State) -> State:
        return {"answer": chat.invoke(PROMPT.invoke(state))}

    async def aanswer(state: State) -> State:
        return {"answer": await chat.ainvoke(PROMPT.invoke(state))}

    builder = StateGraph(State)
    builder.add_node("retrieve", RunnableLambda(retrieve, aretrieve))
    builder.add_node("answer", RunnableLambda(answer, aanswer))
    builder.add_edge(START, "retrieve")
    builder.add_edge("retrieve", "answer")
    builder.add_edge("answer", END)
    return builder.compile()


def test_a_graph_is_warmed_and_answers_as_without_reuse(engine: Engine) -> None:
    graph = graph_of(engine)
    build_and_warm(engine, lambda question: graph.invoke({"question": question}))
    assert "requests" not in engine.stats().counters
    done = graph.invoke({"question": ASKED})["answer"]
    assert usage_of(done)["outcome"] == "hit"
    plain = graph_of(engine, reuse="off").invoke({"question": ASKED})["answer"]
    assert usage_of(plain)["reused_tokens"] == 0
    assert done.content == plain.content
    assert engine.check().is_clean


async def test_a_graph_answers_asynchronously(warm: Engine) -> None:
    graph = graph_of(warm)
    done = (await graph.ainvoke({"question": ASKED}))["answer"]
    assert usage_of(done)["outcome"] == "hit"
    assert done.content == graph.invoke({"question": ASKED})["answer"].content


async def test_an_async_text_chain_is_warmed_past_its_fallbacks(engine: Engine) -> None:
    engine.build(
        questions=QUESTIONS, retriever=WordRetriever(), num_clusters=3, max_pins=1, pca_dim=8
    )
    ran: list[dict[str, str]] = []
    fallback = RunnableLambda(lambda given: ran.append(given) or {"answer": ""})
    chain = retrieval_chain(engine, CentroidKVLLM).with_fallbacks([fallback])
    report = await engine.awarm(lambda question: chain.ainvoke({"input": question}))
    assert report.filled == report.num_clusters > 0
    assert (report.problems, ran) == ({}, [])


def test_a_graph_streams_tokens_and_updates(warm: Engine) -> None:
    graph = graph_of(warm)
    expected = graph.invoke({"question": ASKED})["answer"]
    steps = list(graph.stream({"question": ASKED}, stream_mode="updates"))
    assert [next(iter(step)) for step in steps] == ["retrieve", "answer"]
    assert steps[-1]["answer"]["answer"].content == expected.content
    pieces = [chunk for chunk, _ in graph.stream({"question": ASKED}, stream_mode="messages")]
    assert len([p for p in pieces if p.content]) == expected.usage_metadata["output_tokens"]
    assert "".join(p.content for p in pieces) == expected.content


async def test_a_graph_streams_asynchronously(warm: Engine) -> None:
    graph = graph_of(warm)
    expected = (await graph.ainvoke({"question": ASKED}))["answer"]
    stream = graph.astream({"question": ASKED}, stream_mode="messages")
    pieces = [chunk async for chunk, _ in stream]
    assert len([p for p in pieces if p.content]) == expected.usage_metadata["output_tokens"]
    assert "".join(p.content for p in pieces) == expected.content


# the retrieval chain of the classic package


def retrieval_chain(engine: Engine, kind: type = ChatCentroidKV, **options: Any) -> Runnable:
    prompt = ChatPromptTemplate.from_messages(
        [("system", "Answer from the context.\n\n{context}"), ("human", "{input}")]
    )
    llm = kind(engine=engine, max_tokens=8, **options)
    return create_retrieval_chain(pinned(engine), create_stuff_documents_chain(llm, prompt))


@pytest.mark.parametrize("kind", [ChatCentroidKV, CentroidKVLLM])
def test_a_retrieval_chain_answers_as_without_reuse(engine: Engine, kind: type) -> None:
    chain = retrieval_chain(engine, kind)
    build_and_warm(engine, lambda question: chain.invoke({"input": question}))
    done = chain.invoke({"input": ASKED})
    assert engine.stats().counters["outcome_hit"] == 1
    assert done["context"] == [Document(page_content=PASSAGES["card"])]
    plain = retrieval_chain(engine, kind, reuse="off").invoke({"input": ASKED})
    assert plain["answer"] == done["answer"] != ""
    pieces = [p["answer"] for p in chain.stream({"input": ASKED}) if "answer" in p]
    assert "".join(pieces) == done["answer"]


# retries, fallbacks, batches


def test_a_retry_reuses_what_the_failed_attempt_computed(warm: Engine) -> None:
    seen: list[AIMessage] = []

    def parse(message: AIMessage) -> str:
        seen.append(message)
        if len(seen) == 1:
            raise OutputParserException("not this one")
        return message.content

    chain = (chat_chain(warm) | parse).with_retry(
        stop_after_attempt=2, wait_exponential_jitter=False
    )
    assert chain.invoke(ASKED) == seen[0].content
    assert [usage_of(m)["outcome"] for m in seen] == ["hit", "hit"]


def test_a_fallback_answers_what_the_first_model_cannot(
    engine: Engine, open_engine: Callable[..., Engine], tmp_path: Any
) -> None:
    short = wrap_model(make_llama(positions=64), make_tokenizer())
    small = ChatCentroidKV(engine=open_engine(tmp_path / "small", model=short), max_tokens=4)
    large = ChatCentroidKV(engine=engine, max_tokens=4)
    chain = small.with_fallbacks([large], exceptions_to_handle=(ContextTooLong,))
    assert chain.invoke(PASSAGES["card"]).content == large.invoke(PASSAGES["card"]).content
    assert small.invoke("short").content == chain.invoke("short").content
    assert "".join(c.content for c in chain.stream(PASSAGES["card"])) != ""


@pytest.mark.parametrize("at_once", [1, 3])
def test_a_batch_within_a_concurrency_equals_single_calls(warm: Engine, at_once: int) -> None:
    chain = chat_chain(warm)
    done = chain.batch(QUESTIONS, {"max_concurrency": at_once})
    assert [m.content for m in done] == [chain.invoke(q).content for q in QUESTIONS]
    assert all(usage_of(m)["reused_tokens"] > 64 for m in done)
    assert warm.check().is_clean


async def test_an_async_batch_within_a_concurrency_equals_single_calls(warm: Engine) -> None:
    chain = chat_chain(warm)
    done = await chain.abatch(QUESTIONS, {"max_concurrency": 3})
    assert [m.content for m in done] == [chain.invoke(q).content for q in QUESTIONS]
    assert warm.check().is_clean


# callbacks and events


class Witness(BaseCallbackHandler):
    """Notes tokens and the end of each model call."""

    def __init__(self) -> None:
        self.tokens: list[str] = []
        self.usage: dict[str, Any] = {}

    def on_llm_new_token(self, token: str, **_: Any) -> None:
        if token:
            self.tokens.append(token)

    def on_llm_end(self, response: Any, **_: Any) -> None:
        generation = response.generations[0][0]
        message = getattr(generation, "message", None)
        self.usage = usage_of(message) if message else generation.generation_info["usage"]


class AsyncWitness(Witness, AsyncCallbackHandler):
    """The same, awaited."""

    async def on_llm_new_token(self, token: str, **_: Any) -> None:
        Witness.on_llm_new_token(self, token)

    async def on_llm_end(self, response: Any, **_: Any) -> None:
        Witness.on_llm_end(self, response)


@pytest.mark.parametrize("kind", [ChatCentroidKV, CentroidKVLLM])
def test_there_is_one_token_event_a_token(engine: Engine, kind: type) -> None:
    """The small model's tokens are single visible characters."""
    model, witness = kind(engine=engine, max_tokens=12), Witness()
    pieces = list(model.stream("a prompt", {"callbacks": [witness]}))
    text = "".join(getattr(p, "content", p) for p in pieces)
    assert len(witness.tokens) == witness.usage["completion_tokens"] == 12
    assert "".join(witness.tokens) == text


@pytest.mark.parametrize("kind", [ChatCentroidKV, CentroidKVLLM])
async def test_there_is_one_awaited_token_event_a_token(engine: Engine, kind: type) -> None:
    model, witness = kind(engine=engine, max_tokens=12), AsyncWitness()
    pieces = [p async for p in model.astream("a prompt", {"callbacks": [witness]})]
    text = "".join(getattr(p, "content", p) for p in pieces)
    assert len(witness.tokens) == witness.usage["completion_tokens"] == 12
    assert "".join(witness.tokens) == text


async def test_events_tell_of_retriever_tokens_and_usage(warm: Engine) -> None:
    chain = chat_chain(warm)
    expected = chain.invoke(ASKED)
    events = [e async for e in chain.astream_events(ASKED, version="v2")]
    kinds = Counter(e["event"] for e in events)
    assert kinds["on_retriever_start"] == kinds["on_retriever_end"] == 2  # the wrapper, its base
    streamed = [e["data"]["chunk"] for e in events if e["event"] == "on_chat_model_stream"]
    assert "".join(c.content for c in streamed) == expected.content
    assert len([c for c in streamed if c.content]) == expected.usage_metadata["output_tokens"]
    (end,) = [e["data"]["output"] for e in events if e["event"] == "on_chat_model_end"]
    assert end.content == expected.content
    for count in ("input_tokens", "output_tokens", "total_tokens"):
        assert end.usage_metadata[count] == expected.usage_metadata[count]
    assert usage_of(end)["outcome"] == "hit"


async def test_a_cancelled_stream_leaves_the_engine_usable(warm: Engine) -> None:
    chain = chat_chain(warm)
    expected = chain.invoke(ASKED).content
    long = chat_chain(warm, max_tokens=3000)
    pieces: list[str] = []

    async def read() -> None:
        async for chunk in long.astream(ASKED):
            pieces.append(chunk.content)  # noqa: PERF401  # seen while the stream goes on

    task = asyncio.create_task(read())
    while not pieces:
        await asyncio.sleep(0.01)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert (await chain.ainvoke(ASKED)).content == expected
    assert len(pieces) < 3000
    assert warm.check().is_clean


async def test_a_closed_event_stream_leaves_the_engine_usable(warm: Engine) -> None:
    chain = chat_chain(warm, max_tokens=3000)
    stream = chain.astream_events(ASKED, version="v2")
    async for event in stream:
        if event["event"] == "on_chat_model_stream":
            break
    await stream.aclose()
    assert usage_of(await chat_chain(warm).ainvoke(ASKED))["outcome"] == "hit"
    assert warm.check().is_clean


# what is written down of a model


@pytest.mark.parametrize("kind", [ChatCentroidKV, CentroidKVLLM])
def test_what_is_written_down_of_a_model_holds_no_engine(engine: Engine, kind: type) -> None:
    model = kind(engine=engine, max_tokens=3)
    for text in (
        dumps(model),
        str(dumpd(model)),
        repr(model),
        str(model),
        repr(model.model_dump()),
    ):
        assert "Engine(" not in text and str(engine.store.path) not in text
    assert "engine" not in model.model_dump() and "engine" not in model.model_dump_json()


def test_what_is_written_down_of_a_chain_holds_no_engine(engine: Engine) -> None:
    chain = chat_chain(engine)
    for text in (dumps(chain), repr(chain), repr(pinned(engine)), pinned(engine).model_dump_json()):
        assert str(engine.store.path) not in text
    assert "engine" not in CentroidKVRetriever(engine=engine, base=WordRetriever()).model_dump()


@pytest.mark.parametrize("kind", [ChatCentroidKV, CentroidKVLLM])
def test_identity_depends_on_the_settings_and_on_nothing_else(
    open_engine: Callable[..., Engine], kind: type
) -> None:
    first, second = open_engine(), open_engine()
    one = kind(engine=first, max_tokens=3)._identifying_params
    assert kind(engine=second, max_tokens=3)._identifying_params == one
    others: list[dict[str, Any]] = [
        {"max_tokens": 4},
        {"temperature": 0.5},
        {"top_p": 0.5},
        {"seed": 1},
        {"stop": ["x"]},
    ]
    for other in others:
        params = kind(engine=first, **{"max_tokens": 3, **other})._identifying_params
        assert params != one and params.keys() == one.keys()
    model = wrap_model(make_llama(seed=1), make_tokenizer())
    other_model = kind(engine=open_engine(model=model), max_tokens=3)
    assert other_model._identifying_params != one


@pytest.mark.parametrize("kind", [ChatCentroidKV, CentroidKVLLM])
def test_a_field_can_be_made_configurable(engine: Engine, kind: type) -> None:
    model = kind(engine=engine, max_tokens=12).configurable_fields(
        max_tokens=ConfigurableField(id="longest")
    )
    for config, length in (({"configurable": {"longest": 5}}, 5), (None, 12)):
        answer = model.invoke("a prompt", config)
        assert len(getattr(answer, "content", answer)) == length
