"""What both frameworks' adapters refuse, and that a refusal names what is wrong."""

from collections.abc import Callable
from typing import Any

import pytest
from langchain_core.caches import InMemoryCache
from langchain_core.documents import Document
from langchain_core.globals import set_llm_cache
from langchain_core.messages import AIMessage
from langchain_core.retrievers import BaseRetriever
from langchain_core.runnables import RunnableLambda
from llama_index.core.llms import ChatMessage
from llama_index.core.postprocessor import SimilarityPostprocessor
from llama_index.core.schema import MetadataMode, NodeWithScore, QueryBundle, TextNode
from pydantic import ValidationError

import llama_index_parts
from centroidkv import Engine
from centroidkv.errors import ConfigError
from centroidkv.langchain import CentroidKVAnswerCache, CentroidKVLLM, ChatCentroidKV
from centroidkv.llama_index import CentroidKVLLM as IndexLLM
from centroidkv.llama_index import CentroidKVPostprocessor
from langchain_parts import ASKED, WordRetriever, chat_chain, pinned
from word_bank import PASSAGES, QUESTIONS

KINDS = [ChatCentroidKV, CentroidKVLLM, IndexLLM]


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("max_tokens", 0),
        ("max_tokens", -1),
        ("temperature", -0.1),
        ("temperature", float("nan")),
        ("top_p", 0),
        ("top_p", 1.5),
        ("seed", -1),
        ("timeout", 0),
        ("stop", [""]),
        ("reuse", "fuzzy"),
    ],
)
def test_a_setting_out_of_range_is_refused_at_construction(
    engine: Engine, kind: type, name: str, value: Any
) -> None:
    with pytest.raises(ValidationError, match=name):
        kind(**{"engine": engine, name: value})


@pytest.mark.parametrize(("name", "value"), [("seed", 2**70), ("temperature", float("inf"))])
def test_numbers_that_cannot_be_sampled_with_are_named(
    engine: Engine, name: str, value: Any
) -> None:
    with pytest.raises(ConfigError, match=f"^{name} must"):
        engine.generate("x", **{"temperature": 1.0, "max_tokens": 1, name: value})


def test_a_question_that_is_no_text_is_named(engine: Engine) -> None:
    with pytest.raises(ConfigError, match=r"^question must"):
        CentroidKVLLM(engine=engine, max_tokens=1).invoke("x", question=5)


@pytest.mark.parametrize("question", [None, 5, b"x", ["x"]])
async def test_a_question_that_is_no_text_is_named_by_the_retriever(
    engine: Engine, question: Any
) -> None:
    with pytest.raises(ConfigError, match="question must"):
        pinned(engine).invoke(question)
    with pytest.raises(ConfigError, match="question must"):
        await pinned(engine).ainvoke(question)
    with pytest.raises(ConfigError, match="question must"):
        chat_chain(engine).invoke(question)


@pytest.mark.parametrize("prompt", [None, 5])
def test_a_prompt_that_is_no_text_is_named(engine: Engine, prompt: Any) -> None:
    with pytest.raises(ConfigError, match="prompt"):
        engine.generate(prompt)
    with pytest.raises(ConfigError, match="prompt"):
        IndexLLM(engine=engine).complete(prompt)


@pytest.mark.parametrize(
    "use",
    [
        lambda e: e.build(questions=["a"], retriever=WordRetriever()),
        lambda e: e.warm(lambda q: q),
        lambda e: e.stats(),
        lambda e: e.check(),
        lambda e: CentroidKVAnswerCache(engine=e),
    ],
    ids=["build", "warm", "stats", "check", "answers"],
)
def test_a_closed_engine_is_named_by_everything(
    engine: Engine, use: Callable[[Engine], object]
) -> None:
    engine.close()
    with pytest.raises(ConfigError, match="the engine is closed"):
        use(engine)


@pytest.mark.parametrize("guard", ["none", "fallback", "retry"])
async def test_an_async_chat_chain_is_warmed_without_errors(engine: Engine, guard: str) -> None:
    engine.build(
        questions=QUESTIONS, retriever=WordRetriever(), num_clusters=3, max_pins=1, pca_dim=8
    )
    chain = chat_chain(engine)
    ran: list[Any] = []
    if guard == "fallback":
        chain = chain.with_fallbacks([RunnableLambda(lambda q: ran.append(q) or AIMessage(""))])
    if guard == "retry":
        chain = chain.with_retry(stop_after_attempt=3, wait_exponential_jitter=False)
    report = await engine.awarm(chain.ainvoke)
    assert report.filled == report.num_clusters > 0
    assert (report.problems, ran) == ({}, [])


async def test_async_warming_passes_answer_caches_by(engine: Engine) -> None:
    engine.build(
        questions=QUESTIONS, retriever=WordRetriever(), num_clusters=3, max_pins=1, pca_dim=8
    )
    condense, chain, cache = ChatCentroidKV(engine=engine), chat_chain(engine), InMemoryCache()

    async def condensing(question: str) -> None:
        await condense.ainvoke(f"Rewrite as one question: {question}", max_tokens=2)
        await chain.ainvoke(question)

    set_llm_cache(cache)
    try:
        report = await engine.awarm(condensing)
    finally:
        set_llm_cache(None)
    assert report.filled == report.num_clusters > 0
    assert cache._cache == {}


class OddRetriever(BaseRetriever):
    """Returns what it is told."""

    result: Any

    def _get_relevant_documents(self, query: str, *, run_manager: Any) -> list[Document]:
        return self.result


@pytest.mark.parametrize("found", [None, ["a string"], "a string"])
def test_a_base_retriever_that_returns_no_documents_is_named(engine: Engine, found: Any) -> None:
    with pytest.raises(ConfigError, match="the retriever returned"):
        pinned(engine, OddRetriever(result=found)).invoke(ASKED)


def test_system_messages_alone_are_named(engine: Engine) -> None:
    with pytest.raises(ConfigError, match="only system messages"):
        IndexLLM(engine=engine, max_tokens=1).chat([ChatMessage(role="system", content="x")])


@pytest.mark.parametrize(
    ("role", "known"), [("chatbot", "assistant"), ("model", "assistant"), ("developer", "system")]
)
def test_roles_of_other_vendors_are_those_of_the_template(
    engine: Engine, role: str, known: str
) -> None:
    llm = IndexLLM(engine=engine, max_tokens=4)

    def answer(name: str) -> str:
        turns = [ChatMessage(role=name, content="x"), ChatMessage(role="user", content="y")]
        return llm.chat(turns).message.content

    assert answer(role) == answer(known)


@pytest.fixture
def warm(engine: Engine) -> Engine:
    run = llama_index_parts.query_engine(engine).query
    llama_index_parts.build_and_warm(engine, run)
    return engine


def test_a_query_that_is_no_text_is_named(warm: Engine) -> None:
    pinning = CentroidKVPostprocessor(engine=warm)
    with pytest.raises(ConfigError, match="question must"):
        pinning.postprocess_nodes([], query_bundle=QueryBundle(5))


def test_a_pin_that_was_found_with_a_low_score_is_kept_by_a_cutoff(warm: Engine) -> None:
    """A pin more or less is another prompt, whose KV nobody has."""
    found = [
        NodeWithScore(node=TextNode(text="something else"), score=0.9),
        NodeWithScore(node=TextNode(text=PASSAGES["card"]), score=0.1),
    ]
    pinning = CentroidKVPostprocessor(engine=warm)
    composed = pinning.postprocess_nodes(found, query_str=ASKED)
    kept = SimilarityPostprocessor(similarity_cutoff=0.5).postprocess_nodes(composed)
    assert [n.node.get_content() for n in kept] == [PASSAGES["card"], "something else"]


def test_a_pin_reads_the_same_whether_it_was_found_or_not(engine: Engine) -> None:
    """Readers set what of a node's metadata the model may see; a pin must keep to it."""
    nodes = [
        TextNode(
            text=text,
            metadata={"title": name, "file_path": f"/data/{name}.txt", "pages": (1, 2)},
            excluded_llm_metadata_keys=["file_path"],
            text_template="[{metadata_str}] {content}",
        )
        for name, text in PASSAGES.items()
    ]
    retriever = llama_index_parts.WordRetriever(nodes)
    run = llama_index_parts.query_engine(engine, retriever=retriever).query
    llama_index_parts.build_and_warm(engine, run, retriever)
    pinning = CentroidKVPostprocessor(engine=engine)
    found = pinning.postprocess_nodes(retriever.retrieve(ASKED), query_str=ASKED)
    pins = pinning.postprocess_nodes([], query_str=ASKED)
    assert (
        found[0]
        .node.get_content(MetadataMode.LLM)
        .startswith("[title: card\npages: [1, 2]] A lost")
    )
    assert [n.node.get_content(MetadataMode.LLM) for n in pins] == [
        n.node.get_content(MetadataMode.LLM) for n in found
    ]
