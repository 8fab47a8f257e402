"""The chains of the frameworks' own first pages, but for the constructors, on the bundled models.

Each is built twice, with reuse and with `reuse="off"`, and must give the same answers.
"""

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import bank
import pytest
from langchain_classic.chains import create_retrieval_chain
from langchain_classic.chains.combine_documents import create_stuff_documents_chain
from langchain_core.callbacks import BaseCallbackHandler, get_usage_metadata_callback
from langchain_core.output_parsers import StrOutputParser
from langchain_core.prompts import ChatPromptTemplate
from langchain_core.runnables import Runnable, RunnablePassthrough
from llama_index.core import SimpleDirectoryReader, VectorStoreIndex
from llama_index.core.base.embeddings.base import BaseEmbedding
from llama_index.core.instrumentation import get_dispatcher
from llama_index.core.instrumentation.event_handlers import BaseEventHandler
from llama_index.core.instrumentation.events.llm import LLMChatEndEvent
from pydantic import Field

from centroidkv import Engine
from centroidkv.langchain import CentroidKVLLM, CentroidKVRetriever, ChatCentroidKV
from centroidkv.llama_index import CentroidKVLLM as IndexLLM
from centroidkv.llama_index import CentroidKVPostprocessor
from centroidkv.models.transformers_model import TransformersModel
from centroidkv.routing.embedder import SentenceBertEmbedder

QUESTIONS = [
    q.text for q in bank.unseen_questions() if q.expected_passage.startswith(("card", "transfer"))
][:3]
LENGTH = {"max_tokens": 16}


@pytest.fixture(scope="module")
def engine(
    smollm: TransformersModel, minilm: SentenceBertEmbedder, tmp_path_factory
) -> Iterator[Engine]:
    folder = tmp_path_factory.mktemp("chains") / "store"
    with Engine.open(folder, model=smollm, embedder=minilm) as engine:
        engine.build(questions=past(), retriever=bank.retriever(minilm), num_clusters=2, max_pins=2)
        yield engine


def past() -> list[str]:
    rows = [r for r in bank.past_questions() if r["domain"] in ("cards", "transfers")]
    return [r["question"] for r in rows[:40]]


# LangChain


def documents_chain(retriever: Any, llm: Any) -> Runnable[str, str]:
    """The RAG chain of LangChain's documentation, with a prompt as on its hub."""
    prompt = ChatPromptTemplate.from_template(
        "You are an assistant for question-answering tasks. Use the following pieces of "
        "retrieved context to answer the question. If you don't know the answer, just say that "
        "you don't know.\n\nContext: {context}\n\nQuestion: {question}\n\nAnswer:"
    )

    def format_docs(docs):
        return "\n\n".join(doc.page_content for doc in docs)

    return (
        {"context": retriever | format_docs, "question": RunnablePassthrough()}
        | prompt
        | llm
        | StrOutputParser()
    )


def retrieval_chain(retriever: Any, llm: Any) -> Runnable[str, str]:
    """`create_retrieval_chain` as in its own documentation."""
    system_prompt = (
        "Use the given context to answer the question. If you don't know the answer, say you "
        "don't know. Use three sentence maximum and keep the answer concise. Context: {context}"
    )
    prompt = ChatPromptTemplate.from_messages([("system", system_prompt), ("human", "{input}")])
    question_answer_chain = create_stuff_documents_chain(llm, prompt)
    chain = create_retrieval_chain(retriever, question_answer_chain)
    return (lambda question: {"input": question}) | chain | (lambda done: done["answer"])


class Usage(BaseCallbackHandler):
    """Adds up what was reused."""

    def __init__(self) -> None:
        self.reused: list[int] = []

    def on_llm_end(self, response: Any, **_: Any) -> None:
        (generation,) = response.generations[0]
        message = getattr(generation, "message", None)
        told = message.response_metadata if message else generation.generation_info
        self.reused.append(told["usage"]["reused_tokens"])


@pytest.mark.parametrize(
    ("make", "kind"),
    [
        (documents_chain, ChatCentroidKV),
        (documents_chain, CentroidKVLLM),
        (retrieval_chain, ChatCentroidKV),
    ],
)
def test_a_langchain_chain_answers_as_without_reuse(
    engine: Engine, minilm: SentenceBertEmbedder, make: Callable[..., Any], kind: type
) -> None:
    retriever = CentroidKVRetriever(engine=engine, base=bank.retriever(minilm, k=2))
    chain = make(retriever, kind(engine=engine, **LENGTH))
    assert engine.warm(chain.invoke).problems == {}
    plain = make(retriever, kind(engine=engine, reuse="off", **LENGTH))
    with_reuse, without = Usage(), Usage()
    for question in QUESTIONS:
        answer = chain.invoke(question, {"callbacks": [with_reuse]})
        assert answer == plain.invoke(question, {"callbacks": [without]}) != ""
    assert len(with_reuse.reused) == len(QUESTIONS)
    assert min(with_reuse.reused) > 300, with_reuse.reused
    assert without.reused == [0] * len(QUESTIONS)
    assert engine.check().is_clean


def test_langchains_own_usage_callback_counts_what_was_reused(engine: Engine) -> None:
    chat = ChatCentroidKV(engine=engine, max_tokens=4)
    question = f"{bank.documents()[0].page_content}\n\nWhat do I need for this?"
    with get_usage_metadata_callback() as told:
        first = chat.invoke(question)
        again = chat.invoke(question)
    assert again.content == first.content
    (counted,) = told.usage_metadata.values()
    assert counted["input_tokens"] == 2 * first.usage_metadata["input_tokens"]
    reused = [m.usage_metadata["input_token_details"]["cache_read"] for m in (first, again)]
    assert counted["input_token_details"]["cache_read"] == sum(reused)
    assert reused[1] == first.usage_metadata["input_tokens"] - 1


# LlamaIndex


class BankEmbedding(BaseEmbedding):
    """What a user's index embeds with: here the same MiniLM that routes questions."""

    embedder: Any

    def _get_text_embedding(self, text: str) -> list[float]:
        return self.embedder.embed([text])[0].tolist()

    def _get_query_embedding(self, query: str) -> list[float]:
        return self._get_text_embedding(query)

    async def _aget_query_embedding(self, query: str) -> list[float]:
        return self._get_text_embedding(query)


class Events(BaseEventHandler):
    """Notes what was reused by each model call."""

    reused: list[int] = Field(default_factory=list)

    def handle(self, event: Any, **_: Any) -> None:
        if isinstance(event, LLMChatEndEvent):
            self.reused.append(event.response.raw["usage"]["reused_tokens"])


@pytest.fixture
def events() -> Iterator[Events]:
    dispatcher, events = get_dispatcher(), Events()
    dispatcher.add_event_handler(events)
    yield events
    dispatcher.event_handlers.remove(events)


def test_a_llama_index_query_engine_answers_as_without_reuse(
    engine: Engine, minilm: SentenceBertEmbedder, tmp_path: Path, events: Events
) -> None:
    for number, document in enumerate(bank.documents()[:50]):
        (tmp_path / f"{number:02}.txt").write_text(document.page_content, "utf-8")
    documents = SimpleDirectoryReader(str(tmp_path)).load_data()
    index = VectorStoreIndex.from_documents(documents, embed_model=BankEmbedding(embedder=minilm))
    own = engine.for_tenant("llama-index")

    def query_engine(**options: Any) -> Any:
        return index.as_query_engine(
            llm=IndexLLM(engine=own, **LENGTH, **options),
            node_postprocessors=[CentroidKVPostprocessor(engine=own)],
        )

    own.build(questions=past(), retriever=index.as_retriever(), num_clusters=2, max_pins=2)
    assert own.warm(query_engine().query).problems == {}
    events.reused.clear()
    answers = [str(query_engine().query(question)) for question in QUESTIONS]
    with_reuse = list(events.reused)
    events.reused.clear()
    assert answers == [str(query_engine(reuse="off").query(question)) for question in QUESTIONS]
    assert events.reused == [0] * len(QUESTIONS) and "" not in answers
    assert len(with_reuse) == len(QUESTIONS)
    assert min(with_reuse) > 300, with_reuse
    assert own.check().is_clean
