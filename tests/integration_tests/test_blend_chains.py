"""Chains of both frameworks with nothing set but `reuse="blend"`, on the bundled models."""

import sys
from collections.abc import Iterator, Sequence
from typing import Any

import bank
import pytest
from langchain_core.documents import Document
from langchain_core.prompts import ChatPromptTemplate
from langchain_core.retrievers import BaseRetriever
from langchain_core.runnables import Runnable, RunnablePassthrough
from llama_index.core import get_response_synthesizer
from llama_index.core.base.base_retriever import BaseRetriever as IndexRetriever
from llama_index.core.query_engine import RetrieverQueryEngine
from llama_index.core.schema import NodeWithScore, QueryBundle, TextNode

from centroidkv import Completion, Engine, Passage
from centroidkv.langchain import CentroidKVRetriever, ChatCentroidKV
from centroidkv.llama_index import CentroidKVLLM, CentroidKVPostprocessor
from centroidkv.models.transformers_model import TransformersModel
from centroidkv.routing.embedder import SentenceBertEmbedder
from centroidkv.types import common_prefix

TEXTS = [d.page_content for d in bank.documents()[:4]]
QUESTIONS = ["How do I block my card?", "What does one transfer cost?"]
ANSWER = 8


class Shuffled(BaseRetriever):
    """Finds the same passages for every question, each time in another order."""

    def _get_relevant_documents(self, query: str, *, run_manager: Any) -> list[Document]:
        return [Document(page_content=TEXTS[i]) for i in order(query)]


class ShuffledNodes(IndexRetriever):
    """The same for LlamaIndex, whose nodes bring a file name into the prompt."""

    def _retrieve(self, query_bundle: QueryBundle) -> list[NodeWithScore]:
        nodes = [
            TextNode(text=TEXTS[i], metadata={"file": f"{i}.txt"})
            for i in order(query_bundle.query_str)
        ]
        return [NodeWithScore(node=node, score=1.0) for node in nodes]


def order(question: str) -> list[int]:
    turn = len(question) % len(TEXTS)  # another one for each question asked here
    return [*range(turn, len(TEXTS)), *range(turn)][::-1]


@pytest.fixture(scope="module")
def engine(
    smollm: TransformersModel, minilm: SentenceBertEmbedder, tmp_path_factory
) -> Iterator[Engine]:
    """Its gate is tried here, on the real model."""
    folder = tmp_path_factory.mktemp("blend") / "store"
    with Engine.open(folder, model=smollm, embedder=minilm, reuse="blend") as engine:
        yield engine


def chain(engine: Engine, **options: Any) -> Runnable[str, Any]:
    prompt = ChatPromptTemplate.from_messages(
        [("system", "Answer from the context in one sentence.\n\n{context}"), ("human", "{asked}")]
    )
    retriever = CentroidKVRetriever(engine=engine, base=Shuffled())
    context = retriever | (lambda found: "\n\n".join(d.page_content for d in found))
    chat = ChatCentroidKV(engine=engine, max_tokens=ANSWER, **options)
    return {"context": context, "asked": RunnablePassthrough()} | prompt | chat


def test_a_langchain_chain_blends(engine: Engine) -> None:
    blended, plain = chain(engine), chain(engine, reuse="off")
    report = engine.prefill_passages(blended.invoke, TEXTS)
    assert report.problems == {}
    answers = [(blended.invoke(q), plain.invoke(q)) for q in QUESTIONS]
    for done, _ in answers:
        usage = done.response_metadata["usage"]
        assert (usage["reason"], usage["blend_problem"]) == ("blended", None)
        assert usage["approximate"]
        assert usage["blended_tokens"] > 0.6 * usage["prompt_tokens"]
        cached = usage["prompt_tokens"] - usage["computed_tokens"]
        assert done.usage_metadata["input_token_details"]["cache_read"] == cached
    show([[str(m.content) for m in pair] for pair in answers], "LangChain")
    assert engine.check().is_clean


def blended(engine: Engine) -> int:
    """Count the blended requests of all tenants, which only the opener's engine tells."""
    return engine.stats().counters.get("reason_blended", 0)


def test_a_llama_index_query_engine_blends(engine: Engine) -> None:
    own = engine.for_tenant("nodes")

    def query_engine(**options: Any) -> RetrieverQueryEngine:
        llm = CentroidKVLLM(engine=own, max_tokens=ANSWER, **options)
        return RetrieverQueryEngine(
            retriever=ShuffledNodes(),
            response_synthesizer=get_response_synthesizer(llm=llm),
            node_postprocessors=[CentroidKVPostprocessor(engine=own)],
        )

    usages = []
    for question in ("first", "second one", *QUESTIONS):
        before = blended(engine)
        answer = str(query_engine().query(question))
        own.flush()
        usages.append(blended(engine) - before)
        assert answer
    # The first prompt shows that there is a head, the second which; from then on passages are hits.
    assert usages == [0, 0, 1, 1]
    pair = [str(query_engine(**o).query(QUESTIONS[0])) for o in ({}, {"reuse": "off"})]
    show([pair], "LlamaIndex")


@pytest.mark.parametrize("mark", ["\n", "Passage: ", "Passage (file {number}.txt): "])
def test_a_first_passage_is_exact_whatever_stands_before_it(engine: Engine, mark: str) -> None:
    """Even where a token reaches over its beginning, or a title of its own comes before it."""

    def ask(numbers: Sequence[int], **options: Any) -> Completion:
        texts = [TEXTS[n] for n in numbers]
        context = "\n".join(mark.format(number=n) + TEXTS[n] for n in numbers)
        engine.compose(engine.route(QUESTIONS[0]), [Passage.of(t) for t in texts])
        prompt = f"Answer from these passages in one sentence.\n{context}\n\n{QUESTIONS[0]}"
        return engine.generate(prompt, max_tokens=ANSWER, question=QUESTIONS[0], **options)

    for numbers in ((0, 1, 2), (1, 2, 0), (2, 0, 1)):
        ask(numbers)
        engine.flush()
    behind = ask((2, 1, 0)).usage
    first = engine.model.count_tokens(TEXTS[2])
    assert (behind.reason, behind.blend_problem) == ("blended", None)
    assert behind.reused_tokens > first
    assert behind.blended_tokens > engine.model.count_tokens(TEXTS[1] + TEXTS[0]) - 6
    alone = ask((1,))
    assert (alone.usage.blended_tokens, alone.usage.approximate) == (0, False)
    assert alone.usage.reused_tokens > engine.model.count_tokens(TEXTS[1])
    assert alone.token_ids == ask((1,), reuse="off").token_ids


def show(pairs: Sequence[Sequence[str]], name: str) -> None:
    """Show how far blended answers go with computed ones; they may part at any token."""
    for blended, plain in pairs:
        same = common_prefix(blended.split(), plain.split())
        sys.stdout.write(f"{name}: {same} words alike, then {blended!r} and {plain!r}\n")
