"""The example bank's labelled pairs hold a bound of 5 %, and something is served under it."""

import csv
import json
from collections.abc import Iterator

import bank
import numpy as np
import pytest
from langchain_core.outputs import Generation

from centroidkv import Engine
from centroidkv.langchain import CentroidKVAnswerCache
from centroidkv.models.transformers_model import TransformersModel
from centroidkv.routing.embedder import SentenceBertEmbedder
from centroidkv.routing.labelled_pairs import read_pairs

PAIRS = bank.DATA / "question_pairs.csv"
KEPT = ["How do I freeze my card?", "How do I raise my transfer limit?"]


@pytest.fixture(scope="module")
def engine(
    smollm: TransformersModel,
    minilm: SentenceBertEmbedder,
    tmp_path_factory: pytest.TempPathFactory,
) -> Iterator[Engine]:
    folder = tmp_path_factory.mktemp("bound") / "store"
    with Engine.open(folder, model=smollm, embedder=minilm) as opened:
        opened.calibrate(PAIRS)
        yield opened


def test_five_percent_holds_and_tighter_bounds_are_refused(engine: Engine) -> None:
    assert engine.calibration is not None
    one, two, five = engine.calibration.report()
    assert five.threshold is not None
    assert five.num_served >= 59
    assert five.upper_limit <= 0.05
    assert one.threshold is None and two.threshold is None
    assert "it takes 149 pairs served without a mistake" in str(two)


def test_unseen_questions_are_served_their_nearest_past_one(
    engine: Engine, minilm: SentenceBertEmbedder
) -> None:
    calibration = engine.calibration
    assert calibration is not None
    lines = (bank.DATA / "unseen_questions.jsonl").read_text("utf-8").splitlines()
    unseen = [json.loads(line)["question"] for line in lines]
    past = [row["question"] for row in bank.past_questions()]
    u, v = minilm.embed(unseen), minilm.embed(past)
    nearest = np.argmax(u @ v.T, axis=1)
    served = [
        (question, past[i])
        for question, i, x in zip(unseen, nearest, u, strict=True)
        if calibration.decide(question, past[i], x, v[i], max_error=0.05).serve
    ]
    assert 3 <= len(served) <= 40, served


def test_look_alikes_with_opposites_and_other_numbers_are_not_served(
    engine: Engine, minilm: SentenceBertEmbedder
) -> None:
    calibration = engine.calibration
    assert calibration is not None
    pairs = read_pairs(bank.DATA / "look_alike_pairs.csv")
    u = minilm.embed([p.question for p in pairs])
    v = minilm.embed([p.candidate for p in pairs])
    served = [
        p
        for p, x, y in zip(pairs, u, v, strict=True)
        if calibration.decide(p.question, p.candidate, x, y, max_error=0.05).serve
    ]
    assert len(served) >= 3
    assert [p for p in served if not p.same_answer] == []


def test_the_answer_cache_serves_a_paraphrase_and_not_the_opposite(engine: Engine) -> None:
    cache = CentroidKVAnswerCache(engine=engine, max_error=0.05)
    for question in KEPT:
        cache.update(f"Context: none.\n\nQuestion: {question}", "m", [Generation(text=question)])

    def found(question: str) -> str | None:
        answer = cache.lookup(f"Context: none.\n\nQuestion: {question}", "m")
        return answer[0].text if answer else None

    assert found("how do i freeze my card") == KEPT[0]
    assert found("How can I freeze my card?") == KEPT[0]
    assert found("How do I unfreeze my card?") is None
    assert found("How do I lower my transfer limit?") is None


def test_the_pairs_are_those_of_the_nearest_past_question(minilm: SentenceBertEmbedder) -> None:
    past = [row["question"] for row in bank.past_questions()]
    pairs = read_pairs(PAIRS)
    u, v = minilm.embed([p.question for p in pairs]), minilm.embed(past)
    cosine = u @ v.T
    own = np.array([cosine[i, past.index(p.candidate)] for i, p in enumerate(pairs)])
    assert (cosine.max(axis=1) - own).max() < 1e-4
    lines = (bank.DATA / "unseen_questions.jsonl").read_text("utf-8").splitlines()
    unseen = {json.loads(line)["question"].casefold() for line in lines}
    with PAIRS.open(encoding="utf-8", newline="") as file:
        assert not unseen & {row["question_a"].casefold() for row in csv.DictReader(file)}
