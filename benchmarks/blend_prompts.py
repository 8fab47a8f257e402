"""Prompts of several passages in an order never seen, of TAT-QA dev and Ask-CFPB.

Owns how real questions and passages become prompts of about 1,500 to 2,000 tokens. A prompt's
tokens are head, passages and end, each tokenized apart, so that every recipe and the full prefill
run the same tokens. Knows nothing of models but a tokenizer.
"""

import itertools
import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from centroidkv import Message
from centroidkv.blend.heads import run_up_of
from centroidkv.models.transformers_model import TransformersModel

SYSTEM = "You answer questions about the context for the customers of a bank. Be short and exact."
LEAST_TOKENS, MOST_TOKENS = 1500, 2000
LEAST_PASSAGES, MOST_PASSAGES = 6, 8
# A passage's length: longer ones are cut at a word.
LEAST_WORDS, MOST_WORDS = 40, 190
POOL = 12  # passages that the prompts of one pool are drawn from
PER_POOL = 5


@dataclass(frozen=True, slots=True)
class Case:
    """One prompt in tokens. Prompts of one pool draw from the same passages."""

    name: str
    pool: str
    head: tuple[int, ...]
    passages: tuple[tuple[int, ...], ...]
    end: tuple[int, ...]

    @property
    def prompt(self) -> list[int]:
        return [*self.head, *(t for p in self.passages for t in p), *self.end]


@dataclass(frozen=True, slots=True)
class _Pool:
    name: str
    passages: tuple[str, ...]
    asked: tuple[tuple[str, int], ...]  # a question, and the passage that answers it


def cases(model: TransformersModel, folder: Path, *, num: int, seed: int = 0) -> list[Case]:
    """Return `num` prompts, half of each set, by turns; pool by pool in each set."""
    random = np.random.default_rng(seed)
    found: list[list[Case]] = []
    for pools in (_cfpb(folder, random), _tatqa(folder, random)):
        own: list[Case] = []
        while len(own) < num // 2:
            own += _of_pool(model, next(pools), random)
        found.append(own[: num // 2])
    return [case for pair in zip(*found, strict=True) for case in pair]


def run_ups(prompts: Sequence[Case]) -> dict[str, tuple[tuple[int, ...], ...]]:
    """Return what the passages of each pool are computed behind: passages of others of its set.

    Such as stand in no prompt of the pool, as many as a run-up has room for.
    """
    found = {}
    for pool in {case.pool for case in prompts}:
        own_set = pool.split("/")[0]
        others = [c for c in prompts if c.pool != pool and c.pool.startswith(own_set)]
        own = {p for c in prompts if c.pool == pool for p in c.passages}
        passages = dict.fromkeys(p for c in others for p in c.passages if p not in own)
        found[pool] = run_up_of(passages)
    return found


def _of_pool(model: TransformersModel, pool: _Pool, random: np.random.Generator) -> list[Case]:
    made = [_case(model, pool, random, i) for i in range(len(pool.asked))]
    return [case for case in made if case is not None][:PER_POOL]


def _case(
    model: TransformersModel, pool: _Pool, random: np.random.Generator, number: int
) -> Case | None:
    """Shuffle the passage that answers among others, until the prompt is long enough."""
    question, gold = pool.asked[number]
    head, end = _frame(model, question)
    order = [gold, *(int(i) for i in random.permutation(len(pool.passages)) if i != gold)]
    taken: list[tuple[int, ...]] = []
    size = len(head) + len(end)
    for i in order:
        ids = _ids(model, pool.passages[i] + "\n\n")
        if size + len(ids) > MOST_TOKENS or len(taken) == MOST_PASSAGES:
            continue
        taken.append(ids)
        size += len(ids)
    if size < LEAST_TOKENS or len(taken) < LEAST_PASSAGES:
        return None
    shuffled = tuple(taken[i] for i in random.permutation(len(taken)))
    return Case(f"{pool.name}/{number}", pool.name, head, shuffled, end)


def _frame(model: TransformersModel, question: str) -> tuple[tuple[int, ...], tuple[int, ...]]:
    mark = "\u2063"
    messages = [
        Message("system", SYSTEM),
        Message("user", f"Context:\n\n{mark}Question: {question}"),
    ]
    before, behind = model.encode(messages).text.split(mark)
    return _ids(model, before), _ids(model, behind)


def _ids(model: TransformersModel, text: str) -> tuple[int, ...]:
    return tuple(model.tokenizer(text, add_special_tokens=False)["input_ids"])


def _cfpb(folder: Path, random: np.random.Generator) -> Iterator[_Pool]:
    """Pools of one topic each; questions are asked of their own answers."""
    lines = (folder / "ask_cfpb/passages.jsonl").read_text("utf-8").splitlines()
    rows = [r for r in map(json.loads, lines) if len(r["answer"].split()) >= 2 * LEAST_WORDS]
    topics: dict[str, list[Any]] = {}
    for i in random.permutation(len(rows)):
        topics.setdefault(rows[i]["topic"], []).append(rows[i])
    while True:
        for topic in sorted(topics):
            own, topics[topic] = topics[topic][:POOL], topics[topic][POOL:]
            if len(own) == POOL:
                texts = tuple(_cut(r["answer"]) for r in own)
                asked = tuple((r["question"], i) for i, r in enumerate(own))
                yield _Pool(f"ask_cfpb/{topic}/{own[0]['id']}", texts, asked)


def _tatqa(folder: Path, random: np.random.Generator) -> Iterator[_Pool]:
    """Pools of a few reports each; one question of each passage that a text span answers."""
    documents = json.loads((folder / "tatqa/dev.json").read_text("utf-8"))
    order = iter(random.permutation(len(documents)))
    for first in order:
        passages: list[str] = []
        asked: list[tuple[str, int]] = []
        document = documents[first]
        while len(passages) < POOL:
            asked += _questions(document, len(passages))
            passages += _texts(document)
            document = documents[next(order)]
        yield _Pool(f"tatqa/{first}", tuple(passages), tuple(asked))


def _texts(document: Any) -> list[str]:
    table = "\n".join(" | ".join(c for c in row if c) for row in document["table"]["table"])
    paragraphs = [p["text"] for p in document["paragraphs"]]
    return [_cut(t) for t in [table, *paragraphs] if len(t.split()) >= LEAST_WORDS]


def _questions(document: Any, begin: int) -> list[tuple[str, int]]:
    texts = _texts(document)
    found = []
    for i, text in enumerate(texts):
        for row in document["questions"]:
            spans = row["answer"] if isinstance(row["answer"], list) else [row["answer"]]
            if all(str(s) in text for s in spans):
                found.append((row["question"], begin + i))
                break
    return found


def _cut(text: str) -> str:
    words = text.split(" ")
    return " ".join(words[:MOST_WORDS])


def borders(passages: Sequence[Sequence[int]], begin: int) -> list[tuple[int, int]]:
    """Return where passages stand that follow each other from `begin` on."""
    ends = np.cumsum([begin, *map(len, passages)]).tolist()
    return list(itertools.pairwise(ends))
