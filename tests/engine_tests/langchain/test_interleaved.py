"""Requests at once with the same passages: each has its own question, whoever generates first."""

import sqlite3
from collections.abc import Callable
from contextlib import closing
from pathlib import Path

import pytest

from centroidkv import Engine, Passage
from langchain_parts import build_and_warm as build_and_warm_chain
from langchain_parts import chat_chain
from word_bank import FRAMES, QUESTIONS, TOPICS, labelled

A, B = "how to block lost card", "how to wire another country"


def handbook(question: str) -> list[Passage]:
    return [Passage.of("The bank's handbook: cards, wires and loans are told of here. " * 8)]


def prompt_of(engine: Engine, question: str) -> str:
    passages = engine.compose(engine.route(question), handbook(question))
    context = "\n".join(p.text for p in passages)
    return f"Context.\n\n{context}\n\nQuestion: {question}"


def times(store: Path) -> dict[str, int]:
    with closing(sqlite3.connect(store / "history.sqlite")) as db:
        return dict(db.execute("SELECT question, times FROM seen"))


def test_each_question_of_a_batch_is_counted_for_itself(
    open_engine: Callable[..., Engine], tmp_path: Path
) -> None:
    engine = open_engine()
    chain = chat_chain(engine)
    build_and_warm_chain(engine, chain.invoke)
    engine.flush()
    before = times(tmp_path / "store")
    asked = QUESTIONS[:3]
    chain.batch(asked * 4)
    engine.flush()
    after = times(tmp_path / "store")
    assert {q: after[q] - before[q] for q in asked} == dict.fromkeys(asked, 4)


@pytest.fixture
def approximate(open_engine: Callable[..., Engine]) -> Engine:
    engine = open_engine(
        reuse="representative", representative_form="answer", max_error=0.1, max_records=8
    )
    questions = [frame.format(topic) for topic in TOPICS[:4] for frame in FRAMES]
    engine.build(questions=questions, retriever=handbook, num_clusters=4, max_pins=1, pca_dim=8)
    engine.calibrate(labelled())
    return engine


@pytest.mark.parametrize("first", [A, B])
def test_no_question_gets_the_answer_to_another_that_was_retrieved_meanwhile(
    approximate: Engine, first: str
) -> None:
    engine, second = approximate, B if first == A else A
    right = {
        q: engine.generate(prompt_of(engine, q), max_tokens=12, reuse="off").text for q in (A, B)
    }
    prompts = {q: prompt_of(engine, q) for q in (A, B)}
    for _ in range(2):
        for question in (first, second):
            done = engine.generate(prompts[question], max_tokens=12)
            assert done.text == right[question]
            assert done.usage.representative in (None, question)
    assert engine.generate(prompts[A], max_tokens=12).usage.reason == "representative_answer"


def test_a_question_of_nobody_is_not_stored_with_what_is_personal(
    open_engine: Callable[..., Engine], tmp_path: Path
) -> None:
    engine = open_engine(redact=lambda text: text.replace("Zebulon", "..."))
    one, other = "tell me all that Zebulon asked in detail", "how to wire another country"
    engine.build(questions=QUESTIONS, retriever=handbook, num_clusters=2, max_pins=1, pca_dim=8)
    personal = prompt_of(engine, one)
    prompt_of(engine, other)
    engine.generate(personal, max_tokens=4)
    engine.flush()
    spelt = [held.text for held in engine.export().entries if held.place == "blocks"]
    assert spelt
    assert not [text for text in spelt if "tell me all" in text]
    assert one not in times(tmp_path / "store")
