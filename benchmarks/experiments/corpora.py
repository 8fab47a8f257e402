"""What is asked and what is known: BANKING77 over two bank knowledge bases, and the example bank.

A label says which questions one answer serves: the intent in BANKING77. The example bank's unseen
questions name the passage that answers them; of a past one it is the passage found best for it.
"""

import csv
import html
import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import bank
import numpy as np

from centroidkv.knowledge import KnowledgeBase
from centroidkv.protocols import Embedder
from centroidkv.types import FloatArray, Passage

KNOWLEDGE = {"ask_cfpb": "ask_cfpb/passages.jsonl", "tau2": "tau2_banking/documents.jsonl"}
TOP = 4
PROMPT = (
    "You are the assistant of a bank. Answer the customer's question from the context, in one or "
    "two sentences.\n\nContext:\n{context}\n\nQuestion: {question}\nAnswer:"
)


class KnownVectors:
    """An embedder that keeps what it has embedded, in a file: no text is embedded twice."""

    def __init__(self, load: Callable[[], Embedder], path: Path) -> None:
        self._load = load
        self._live: Embedder | None = None
        self._path = path
        self._known: dict[str, FloatArray] = {}
        if path.exists():
            with np.load(path) as kept:
                texts = json.loads(kept["texts"].tobytes())
                self._known = dict(zip(texts, kept["vectors"], strict=True))

    @property
    def live(self) -> Embedder:
        """The embedder itself, for what is timed."""
        self._live = self._live or self._load()
        return self._live

    @property
    def fingerprint(self) -> str:
        return self.live.fingerprint

    def embed(self, texts: Sequence[str]) -> FloatArray:
        new = [t for t in dict.fromkeys(texts) if t not in self._known]
        if new:
            self._known |= dict(zip(new, self.live.embed(new), strict=True))
            if len(new) > 1:
                self._save()
        return np.stack([self._known[t] for t in texts])

    def _save(self) -> None:
        self._path.parent.mkdir(parents=True, exist_ok=True)
        texts = np.frombuffer(json.dumps(list(self._known)).encode(), np.uint8)
        part = self._path.with_suffix(".part.npz")
        np.savez(part, texts=texts, vectors=np.stack(list(self._known.values())))
        part.replace(self._path)


@dataclass(frozen=True, slots=True)
class Corpus:
    """Questions with their labels, and the passages they are answered from.

    The first `num_past` questions are past ones where the split is given; 0 leaves it to a seed.
    """

    name: str
    questions: tuple[str, ...]
    labels: tuple[str, ...]
    passages: tuple[Passage, ...]
    num_past: int = 0

    def prompt(self, passages: Sequence[Passage], question: str) -> str:
        """Render a prompt; without passages the question stands alone, as in the paper."""
        if not passages:
            return question
        context = "\n\n".join(p.text for p in passages)
        return PROMPT.format(context=context, question=question)


@dataclass(frozen=True, slots=True)
class Split:
    """Numbers of past and of unseen questions, and what all questions are: vectors and labels."""

    past: np.ndarray
    unseen: np.ndarray
    vectors: FloatArray
    labels: np.ndarray
    texts: tuple[str, ...]


def split(corpus: Corpus, vectors: FloatArray, *, seed: int, num_past: int) -> Split:
    """Draw past questions by a seed; the unseen ones are the last of the same drawing.

    They are thus the same for every `num_past`, and none of them is among the past ones.
    """
    random = np.random.default_rng(seed)
    if corpus.num_past:
        past = random.permutation(corpus.num_past)[:num_past]
        unseen = np.arange(corpus.num_past, len(corpus.questions))
    else:
        order = random.permutation(len(corpus.questions))
        past, unseen = order[:num_past], order[num_past:][::-1]
    return Split(past, unseen, vectors, np.array(corpus.labels), corpus.questions)


def banking77(data: Path, knowledge: str) -> Corpus:
    """Read BANKING77's questions over one of `KNOWLEDGE`, or over none: the question alone."""
    with (data / "banking77/train.csv").open(newline="", encoding="utf-8") as file:
        rows = {" ".join(r["text"].split()): r["category"] for r in csv.DictReader(file)}
    passages = _passages(data / KNOWLEDGE[knowledge]) if knowledge in KNOWLEDGE else []
    return Corpus(knowledge, tuple(rows), tuple(rows.values()), tuple(passages))


def example_bank(embedder: Embedder) -> Corpus:
    """Read the example bank, whose split is given."""
    passages = [Passage.of(d.page_content, d.metadata) for d in bank.documents()]
    past = [" ".join(q["question"].split()) for q in bank.past_questions()]
    unseen = bank.unseen_questions()
    embedder.embed(past)  # at once, not one by one
    library = KnowledgeBase(passages, embedder)
    labels = [str(library.search(q, 1)[0].metadata["id"]) for q in past]
    questions = [*past, *(" ".join(q.text.split()) for q in unseen)]
    labels += [q.expected_passage for q in unseen]
    return Corpus("example_bank", tuple(questions), tuple(labels), tuple(passages), len(past))


def _passages(path: Path) -> list[Passage]:
    rows = [json.loads(line) for line in path.read_text("utf-8").splitlines() if line.strip()]
    return [
        Passage.of(
            html.unescape(f"{r.get('title') or r['question']}\n{r.get('content') or r['answer']}"),
            {"id": r["id"]},
        )
        for r in rows
    ]
