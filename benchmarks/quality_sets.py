"""Real questions with real answers, and the passages they are asked of.

Owns how TAT-QA and Ask-CFPB become a knowledge base, past questions and questions to ask. Knows
nothing of prompts, plans or scores.
"""

import csv
import json
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from centroidkv import Passage

# A passage closes once it holds as many words; a longer paragraph is cut at its sentences' ends.
PASSAGE_WORDS, LONGEST_WORDS = 25, 80
TABLE_WORDS = 50
CFPB_WORDS = 80
CFPB_ASKED, BANKING_PAST = 250, 1000
GOLD_WORDS = 30


@dataclass(frozen=True, slots=True)
class Asked:
    """A question with its answer. `expected` are the texts of the passages that hold it.

    `document` is what questions of one origin share, `kind` where the answer stands.
    """

    id: str
    question: str
    gold: str
    document: str
    kind: str
    expected: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Fold:
    """Questions to ask, and the past questions that a plan for them may see."""

    past: tuple[str, ...]
    asked: tuple[Asked, ...]


@dataclass(frozen=True, slots=True)
class QuestionSet:
    """A knowledge base and its questions, with the system text and length of an answer."""

    name: str
    passages: tuple[Passage, ...]
    folds: tuple[Fold, ...]
    system: str
    max_tokens: int


def tatqa(folder: Path, *, seed: int, size: int | None = None) -> QuestionSet:
    """Every span question of TAT-QA dev, asked once: each document's questions in two halves.

    A half is asked with the plan fitted to the other halves; past questions are of every kind.
    `size` takes only the first documents.
    """
    documents = json.loads((folder / "tatqa/dev.json").read_text("utf-8"))[:size]
    random = np.random.default_rng(seed)
    passages: dict[str, Passage] = {}
    past: tuple[list[str], list[str]] = ([], [])
    asked: tuple[list[Asked], list[Asked]] = ([], [])
    for document in documents:
        own = [*_paragraphs(document), _table(document)]
        passages.update((text, Passage.of(text)) for text in own)
        halves = random.permutation(len(document["questions"])) % 2
        for half, row in zip(halves, document["questions"], strict=True):
            past[1 - half].append(row["question"])
            if row["answer_type"] in ("span", "multi-span"):
                asked[half].append(_span_question(document, row, own))
    folds = tuple(Fold(tuple(p), tuple(a)) for p, a in zip(past, asked, strict=True))
    system = "Answer the question from the context, as shortly as possible."
    return QuestionSet("tatqa", tuple(passages.values()), folds, system, 24)


def _span_question(document: Any, row: Any, own: Sequence[str]) -> Asked:
    spans = [" ".join(str(a).split()) for a in row["answer"]]
    source = {"text": own[:-1], "table": own[-1:], "table-text": own}[row["answer_from"]]
    holding = [text for text in source if any(s.casefold() in text.casefold() for s in spans)]
    return Asked(
        id=row["uid"],
        question=row["question"],
        gold=" ".join(spans),
        document=document["table"]["uid"],
        kind=row["answer_from"],
        expected=tuple(holding or source),
    )


def _paragraphs(document: Any) -> list[str]:
    """Pack a document's paragraphs, in their order, into passages of a sensible length."""
    ordered = sorted(document["paragraphs"], key=lambda p: p["order"])
    parts = [s for p in ordered for s in _pieces(" ".join(p["text"].split()))]
    packed = [""]
    for part in parts:
        if len(packed[-1].split()) >= PASSAGE_WORDS:
            packed.append("")
        packed[-1] = f"{packed[-1]}\n{part}".strip()
    return packed


def _pieces(text: str) -> Iterator[str]:
    """Cut a long paragraph at sentence ends."""
    piece: list[str] = []
    for sentence in sentences(text):
        words = sum(len(s.split()) for s in piece) + len(sentence.split())
        if piece and words > LONGEST_WORDS:
            yield " ".join(piece)
            piece = []
        piece.append(sentence)
    yield " ".join(piece)


def _table(document: Any) -> str:
    """Write a table row by row, cells between bars, as far as the longest passage allows."""
    lines: list[str] = []
    for row in document["table"]["table"]:
        lines.append(" | ".join(cell.strip() for cell in row if cell.strip()))
        if sum(len(line.split()) for line in lines) > TABLE_WORDS:
            break
    return "\n".join(lines)


def ask_cfpb(folder: Path, *, seed: int, size: int | None = None) -> QuestionSet:
    """A sample of the bureau's questions, each to be answered from the bureau's own answer.

    A passage is an answer without its question, cut to `CFPB_WORDS` words, and its topic for a
    title. Past are the questions not asked, and customers' questions from BANKING77. `size` takes
    only the first answers.
    """
    lines = (folder / "ask_cfpb/passages.jsonl").read_text("utf-8").splitlines()
    rows = [json.loads(line) for line in lines[:size]]
    texts = [" ".join(row["answer"].split()[:CFPB_WORDS]) for row in rows]
    passages = [
        Passage.of(text, {"title": row["topic"]}) for text, row in zip(texts, rows, strict=True)
    ]
    random = np.random.default_rng(seed)
    chosen = {int(i) for i in random.permutation(len(rows))[: min(CFPB_ASKED, len(rows) // 2)]}
    asked = [
        Asked(
            id=row["id"],
            question=row["question"],
            gold=_first_sentences(texts[i]),
            document=row["id"],
            kind=row["topic"],
            expected=(texts[i],),
        )
        for i, row in enumerate(rows)
        if i in chosen
    ]
    with (folder / "banking77/train.csv").open(newline="", encoding="utf-8") as file:
        customers = [row["text"] for row in csv.DictReader(file)]
    others = [row["question"] for i, row in enumerate(rows) if i not in chosen]
    past = [*others, *(customers[i] for i in random.permutation(len(customers))[:BANKING_PAST])]
    system = "Answer the question from the context, in one or two sentences."
    fold = Fold(tuple(past), tuple(asked))
    return QuestionSet("ask_cfpb", tuple(passages), (fold,), system, 48)


def _first_sentences(text: str) -> str:
    """Return the first sentences of an answer, until they hold `GOLD_WORDS` words."""
    taken: list[str] = []
    for sentence in sentences(text):
        taken.append(sentence)
        if sum(len(s.split()) for s in taken) >= GOLD_WORDS:
            break
    return " ".join(taken)


def sentences(text: str) -> list[str]:
    return re.split(r"(?<=[.!?;:]) +", text)


SETS = {"tatqa": tatqa, "ask_cfpb": ask_cfpb}
