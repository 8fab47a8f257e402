"""LangChain pieces over the word bank: a retriever, a prompt, a chat chain, and its usage."""

from typing import Any

from langchain_core.documents import Document
from langchain_core.messages import BaseMessage
from langchain_core.prompts import ChatPromptTemplate
from langchain_core.retrievers import BaseRetriever
from langchain_core.runnables import Runnable, RunnablePassthrough

from centroidkv import Engine
from centroidkv.langchain import CentroidKVRetriever, ChatCentroidKV
from word_bank import QUESTIONS, search

ASKED = "please block my lost card"
PROMPT = ChatPromptTemplate.from_messages(
    [("system", "Answer from the context.\n\n{context}"), ("human", "{question}")]
)

__all__ = [
    "ASKED",
    "PROMPT",
    "WordRetriever",
    "build_and_warm",
    "chat_chain",
    "joined",
    "pinned",
    "usage_of",
]


class WordRetriever(BaseRetriever):
    """Finds passages by shared words."""

    k: int = 1

    def _get_relevant_documents(self, query: str, *, run_manager: Any) -> list[Document]:
        return [Document(page_content=p.text) for p in search(query)[: self.k]]


def pinned(engine: Engine, base: BaseRetriever | None = None) -> CentroidKVRetriever:
    return CentroidKVRetriever(engine=engine, base=base or WordRetriever())


def joined(documents: list[Document]) -> str:
    return "\n\n".join(d.page_content for d in documents)


def chat_chain(
    engine: Engine, *, base: BaseRetriever | None = None, **options: Any
) -> Runnable[str, Any]:
    chat = ChatCentroidKV(engine=engine, **{"max_tokens": 8, **options})
    context = pinned(engine, base) | joined
    return {"context": context, "question": RunnablePassthrough()} | PROMPT | chat


def build_and_warm(engine: Engine, run: Any) -> None:
    """Three clusters with one pinned passage each, filled by a chain."""
    engine.build(
        questions=QUESTIONS, retriever=WordRetriever(), num_clusters=3, max_pins=1, pca_dim=8
    )
    report = engine.warm(run)
    assert report.filled == report.num_clusters > 0, report
    assert report.problems == {}


def usage_of(message: BaseMessage) -> dict[str, Any]:
    """Return what the engine said of an answer."""
    return message.response_metadata["usage"]
