"""The example bank: its passages, its customers' questions, and the chain a user would have."""

import csv
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from langchain_core.documents import Document
from langchain_core.embeddings import Embeddings
from langchain_core.prompts import PromptTemplate
from langchain_core.retrievers import BaseRetriever
from langchain_core.runnables import Runnable, RunnablePassthrough
from langchain_core.vectorstores import InMemoryVectorStore

DATA = Path(__file__).parent / "data"

# Ten pins cover about three quarters of what the bank's retriever finds for an unseen question.
NUM_CLUSTERS = 48
MAX_PINS = 10
MAX_PIN_TOKENS = 1600

PROMPT = PromptTemplate.from_template(
    "You are the assistant of Harbour Bank. Answer the customer's question from the context, "
    "in one or two sentences.\n\nContext:\n{context}\n\nQuestion: {question}\nAnswer:"
)


@dataclass(frozen=True, slots=True)
class UnseenQuestion:
    """A question that the store is not built from, and the passage that answers it."""

    text: str
    expected_passage: str


class SentenceEmbeddings(Embeddings):
    """What a user's vector store embeds with: here the same MiniLM that routes questions."""

    def __init__(self, embedder: Any) -> None:
        self._embedder = embedder

    def embed_documents(self, texts: list[str]) -> list[list[float]]:
        return self._embedder.embed(texts).tolist()

    def embed_query(self, text: str) -> list[float]:
        return self._embedder.embed([text])[0].tolist()


def past_questions() -> list[dict[str, str]]:
    with (DATA / "past_questions.csv").open(encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file))


def unseen_questions() -> list[UnseenQuestion]:
    lines = (DATA / "unseen_questions.jsonl").read_text("utf-8").splitlines()
    rows = [json.loads(line) for line in lines]
    return [UnseenQuestion(r["question"], r["expected_passage"]) for r in rows]


def documents() -> list[Document]:
    lines = (DATA / "passages.jsonl").read_text("utf-8").splitlines()
    rows = [json.loads(line) for line in lines]
    return [
        Document(
            page_content=f"{r['title']}\n{r['text']}",
            metadata={"id": r["id"], "topic": r["topic"]},
        )
        for r in rows
    ]


def retriever(embedder: Any, k: int = 4) -> BaseRetriever:
    """Return the retriever the bank has today: its passages in a vector store, top `k`."""
    store = InMemoryVectorStore(SentenceEmbeddings(embedder))
    store.add_documents(documents())
    return store.as_retriever(search_kwargs={"k": k})


def chain(passages: BaseRetriever, llm: Runnable[Any, str]) -> Runnable[str, str]:
    """Return the bank's RAG chain, as LangChain's own tutorials write it."""
    context = passages | (lambda found: "\n\n".join(d.page_content for d in found))
    return {"context": context, "question": RunnablePassthrough()} | PROMPT | llm
