"""한빛은행: a Korean bank's RAG chain that reuses KV, from building the store to the last answer.

    python examples/korean_bank/korean_bank.py [--store korean-store] [--questions 6]

What it shows is routing and reuse in Korean: which cluster a question goes to, and how much of its
prompt was not computed again. The bundled language model is English and 135M small: its Korean
answers are poor, so put a Korean model in with `--model FOLDER`.
"""

import argparse
import csv
import json
import logging
import os
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")

from langchain_core.documents import Document
from langchain_core.embeddings import Embeddings
from langchain_core.messages import AIMessage
from langchain_core.prompts import ChatPromptTemplate
from langchain_core.retrievers import BaseRetriever
from langchain_core.runnables import Runnable, RunnablePassthrough
from langchain_core.vectorstores import InMemoryVectorStore

from centroidkv import Engine
from centroidkv.langchain import CentroidKVRetriever, ChatCentroidKV

DATA = Path(__file__).parent / "data"
EMBEDDER = "bundled:e5-multilingual"

# The bundled model's tokenizer spells Korean in bytes, two or three tokens a character: a passage
# has some 500 tokens, so clusters are few and pins too.
NUM_CLUSTERS = 12
MAX_PINS = 3
MAX_PIN_TOKENS = 1800

PROMPT = ChatPromptTemplate.from_messages(
    [
        ("system", "당신은 한빛은행 상담원입니다. 아래 안내문을 보고 한두 문장으로 답하세요."),
        ("human", "안내문:\n{context}\n\n질문: {question}"),
    ]
)


@dataclass(frozen=True, slots=True)
class Asked:
    """A question the store was not built from, and the passage that answers it."""

    text: str
    expected_passage: str


class QuestionEmbeddings(Embeddings):
    """What the bank's vector store embeds with: the embedder that routes questions."""

    def __init__(self, embedder: Any) -> None:
        self._embedder = embedder

    def embed_documents(self, texts: list[str]) -> list[list[float]]:
        return self._embedder.embed(texts).tolist()

    def embed_query(self, text: str) -> list[float]:
        return self._embedder.embed([text])[0].tolist()


def past_questions() -> list[str]:
    with (DATA / "past_questions.csv").open(encoding="utf-8", newline="") as file:
        return [row["question"] for row in csv.DictReader(file)]


def unseen_questions() -> list[Asked]:
    lines = (DATA / "unseen_questions.jsonl").read_text("utf-8").splitlines()
    rows = [json.loads(line) for line in lines]
    return [Asked(r["question"], r["expected_passage"]) for r in rows]


def documents() -> list[Document]:
    lines = (DATA / "passages.jsonl").read_text("utf-8").splitlines()
    rows = [json.loads(line) for line in lines]
    return [
        Document(page_content=f"{r['title']}\n{r['text']}", metadata={"id": r["id"]}) for r in rows
    ]


def retriever(embedder: Any, k: int = 2) -> BaseRetriever:
    store = InMemoryVectorStore(QuestionEmbeddings(embedder))
    store.add_documents(documents())
    return store.as_retriever(search_kwargs={"k": k})


def chain(passages: BaseRetriever, model: Runnable[Any, AIMessage]) -> Runnable[str, AIMessage]:
    context = passages | (lambda found: "\n\n".join(d.page_content for d in found))
    return {"context": context, "question": RunnablePassthrough()} | PROMPT | model


def build(engine: Engine, base: BaseRetriever, *, num_clusters: int = NUM_CLUSTERS) -> None:
    engine.build(
        questions=past_questions(),
        retriever=base,
        num_clusters=num_clusters,
        max_pins=MAX_PINS,
        max_pin_tokens=MAX_PIN_TOKENS,
    )


def told(asked: Asked, answer: AIMessage, ms: float) -> str:
    """Return what happened to a question, in two lines."""
    u = answer.response_metadata["usage"]
    cluster = "no cluster" if u["cluster"] is None else f"cluster {u['cluster']}"
    return (
        f"\n> {asked.text}\n  {u['outcome']} ({u['reason']}) | {cluster} | {ms:,.0f} ms | "
        f"{u['reused_tokens']:,} of {u['prompt_tokens']:,} prompt tokens reused\n"
        f"  {' '.join(answer.text.split())}"
    )


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--store", type=Path, default=Path("korean-store"), help="%(default)s")
    parser.add_argument("--model", default="bundled:smollm2", help="%(default)s")
    parser.add_argument("--questions", type=int, default=6, help="unseen ones asked: %(default)s")
    parser.add_argument("--max-tokens", type=int, default=16, help="of an answer: %(default)s")
    options = parser.parse_args()
    logging.basicConfig(level=logging.WARNING, format="%(message)s")
    with Engine.open(options.store, model=options.model, embedder=EMBEDDER) as engine:
        base = retriever(engine.router.embedder)
        model = ChatCentroidKV(engine=engine, max_tokens=options.max_tokens)
        bank = chain(CentroidKVRetriever(engine=engine, base=base), model)
        if engine.router.plan is None:
            print(f"Building {options.store} from {len(past_questions())} past questions, once.")
            build(engine, base)
        engine.warm(bank.invoke, show_progress=True)
        hits = 0
        asked = unseen_questions()[: options.questions]
        for question in asked:
            started = time.perf_counter()
            answer = bank.invoke(question.text)
            ms = (time.perf_counter() - started) * 1e3
            hits += answer.response_metadata["usage"]["outcome"] in ("hit", "partial")
            print(told(question, answer, ms), flush=True)
        print(
            f"\nKV of the pins was reused for {hits} of {len(asked)} questions never seen before."
        )


if __name__ == "__main__":
    main()
