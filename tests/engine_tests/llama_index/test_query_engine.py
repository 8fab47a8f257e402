"""The LlamaIndex adapters in query and chat engines, on a random model."""

from collections.abc import Callable
from typing import Any

import pytest
from llama_index.core import PromptTemplate, get_response_synthesizer
from llama_index.core.chat_engine import CondensePlusContextChatEngine, ContextChatEngine
from llama_index.core.llms import ChatMessage
from llama_index.core.memory import ChatMemoryBuffer
from llama_index.core.postprocessor import SimilarityPostprocessor
from llama_index.core.query_engine import RetrieverQueryEngine
from llama_index.core.response_synthesizers import ResponseMode
from llama_index.core.retrievers import BaseRetriever
from llama_index.core.schema import NodeWithScore, QueryBundle, TextNode
from pydantic import ValidationError

from centroidkv import Engine
from centroidkv.errors import ConfigError
from centroidkv.llama_index import CentroidKVLLM, CentroidKVPostprocessor
from word_bank import PASSAGES, QUESTIONS


class WordRetriever(BaseRetriever):
    """Finds nodes by shared words."""

    def __init__(self, k: int = 1) -> None:
        super().__init__()
        self.k = k

    def _retrieve(self, query_bundle: QueryBundle) -> list[NodeWithScore]:
        words = set(query_bundle.query_str.lower().split())
        scored = [(len(words & set(text.lower().split())), text) for text in PASSAGES.values()]
        ranked = sorted(scored, key=lambda pair: -pair[0])[: self.k]
        return [
            NodeWithScore(node=TextNode(text=text, id_=f"node-{text[:6]}"), score=float(score))
            for score, text in ranked
        ]


def query_engine(engine: Engine, mode: str = "compact", **options: Any) -> RetrieverQueryEngine:
    llm = CentroidKVLLM(engine=engine, max_tokens=8, **options)
    return RetrieverQueryEngine(
        retriever=WordRetriever(),
        response_synthesizer=get_response_synthesizer(llm=llm, response_mode=ResponseMode(mode)),
        node_postprocessors=[CentroidKVPostprocessor(engine=engine)],
    )


@pytest.fixture
def warm(engine: Engine) -> Engine:
    return warmed(engine)


def warmed(engine: Engine) -> Engine:
    engine.build(
        questions=QUESTIONS, retriever=WordRetriever(), num_clusters=3, max_pins=1, pca_dim=8
    )
    report = engine.warm(query_engine(engine).query)
    assert report.filled == report.num_clusters and report.problems == {}
    return engine


@pytest.mark.parametrize("mode", ["compact", "refine", "tree_summarize", "simple_summarize"])
def test_a_query_engine_answers_as_without_reuse(warm: Engine, mode: str) -> None:
    question = "please block my lost card"
    warm.warm(query_engine(warm, mode).query)
    before = warm.stats().counters.get("outcome_hit", 0)
    reused = query_engine(warm, mode).query(question)
    assert warm.stats().counters["outcome_hit"] == before + 1
    assert str(reused) == str(query_engine(warm, mode, reuse="off").query(question))


async def test_async_gives_the_same(warm: Engine) -> None:
    engine = query_engine(warm)
    question = "please block my lost card"
    assert str(await engine.aquery(question)) == str(engine.query(question))


def test_streaming_gives_the_same(warm: Engine) -> None:
    llm = CentroidKVLLM(engine=warm, max_tokens=8)
    streaming = RetrieverQueryEngine(
        retriever=WordRetriever(),
        response_synthesizer=get_response_synthesizer(llm=llm, streaming=True),
        node_postprocessors=[CentroidKVPostprocessor(engine=warm)],
    )
    question = "please block my lost card"
    text = "".join(streaming.query(question).response_gen)
    assert text == str(query_engine(warm).query(question))


@pytest.mark.parametrize("kind", [ContextChatEngine, CondensePlusContextChatEngine])
def test_chat_engines_answer_and_reuse(warm: Engine, kind: Any) -> None:
    def chat(reuse: str) -> list[str]:
        made = kind.from_defaults(
            retriever=WordRetriever(),
            llm=CentroidKVLLM(engine=warm, max_tokens=8, reuse=reuse),
            node_postprocessors=[CentroidKVPostprocessor(engine=warm)],
            memory=ChatMemoryBuffer.from_defaults(token_limit=2000),
        )
        return [str(made.chat(q)) for q in ("please block my lost card", "is my lost card blocked")]

    assert chat("exact") == chat("off")
    assert warm.stats().counters["outcome_hit"] >= 1


def test_usage_stands_in_raw_and_additional_kwargs(engine: Engine) -> None:
    llm = CentroidKVLLM(engine=engine, max_tokens=4)
    long = "a prompt that is longer than one block of tokens, so that something repeats " * 2
    llm.complete(long)
    done = llm.complete(long)
    assert done.raw["usage"]["outcome"] == done.additional_kwargs["outcome"] == "hit"
    chat = llm.chat([ChatMessage(role="user", content=long)])
    assert chat.raw["usage"]["reused_tokens"] > 64


def test_streams_give_delta_and_cumulative_text(engine: Engine) -> None:
    llm = CentroidKVLLM(engine=engine, max_tokens=6)
    responses = list(llm.stream_complete("a prompt"))
    assert "".join(r.delta or "" for r in responses) == responses[-1].text
    assert responses[-1].text == llm.complete("a prompt").text
    assert responses[-1].raw["usage"]["completion_tokens"] == 6


async def test_async_methods_give_what_the_others_give(engine: Engine) -> None:
    llm = CentroidKVLLM(engine=engine, max_tokens=6)
    message = [ChatMessage(role="user", content="a prompt")]
    assert (await llm.acomplete("a prompt")).text == llm.complete("a prompt").text
    stream = await llm.astream_complete("a prompt")
    assert [r.text async for r in stream][-1] == llm.complete("a prompt").text
    expected = llm.chat(message).message.content
    assert (await llm.achat(message)).message.content == expected
    chats = await llm.astream_chat(message)
    assert [r.message.content async for r in chats][-1] == expected


def test_the_question_comes_from_query_str_wherever_it_stands(engine: Engine) -> None:
    llm = CentroidKVLLM(engine=engine, max_tokens=2)
    template = PromptTemplate("{context_str} {query_str}")
    given = llm.predict(template, context_str="c", query_str="how?")
    partial = llm.predict(template.partial_format(query_str="how?"), context_str="c")
    assert given == partial


def test_pins_come_first_with_the_highest_score(open_engine: Callable[..., Engine]) -> None:
    engine = warmed(open_engine(pins_by="nearest"))
    pinning = CentroidKVPostprocessor(engine=engine)
    question = "please block my lost card"
    found = WordRetriever(k=3).retrieve(question)[1:]
    nodes = pinning.postprocess_nodes(found, query_str=question)
    assert nodes[0].node.get_content() == PASSAGES["card"]
    assert nodes[0].score == max(n.score for n in found)
    assert [n.node_id for n in nodes[1:]] == [n.node_id for n in found]
    kept = SimilarityPostprocessor(similarity_cutoff=found[0].score).postprocess_nodes(nodes)
    assert nodes[0] in kept


def test_base_first_keeps_what_was_retrieved_in_front(open_engine: Callable[..., Engine]) -> None:
    engine = warmed(open_engine(pins_by="nearest"))
    pinning = CentroidKVPostprocessor(engine=engine, order="base_first")
    question = "please block my lost card"
    found = WordRetriever(k=3).retrieve(question)[1:]
    nodes = pinning.postprocess_nodes(found, query_str=question)
    assert nodes[:2] == found and len(nodes) == 3


def test_unknown_arguments_and_messages_are_named(engine: Engine) -> None:
    with pytest.raises(ValidationError, match="max_token"):
        CentroidKVLLM(engine=engine, max_token=3)
    with pytest.raises(ValidationError, match="needs engine"):
        CentroidKVLLM()
    llm = CentroidKVLLM(engine=engine)
    with pytest.raises(ConfigError, match="max_token"):
        llm.complete("x", max_token=3)
    with pytest.raises(ConfigError, match="messages is empty"):
        llm.chat([])


def test_serialisation_holds_no_engine(engine: Engine) -> None:
    llm = CentroidKVLLM(engine=engine)
    assert "engine" not in llm.to_dict()
    assert "Engine(" not in repr(llm) and "Engine(" not in llm.to_json()
