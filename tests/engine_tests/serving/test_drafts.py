"""Earlier answers as drafts: found by prompt and cluster, bounded, never another namespace's."""

import sqlite3
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from centroidkv import Engine
from centroidkv.kv.blocks import pack
from centroidkv.models.drafting import Kind, Pace
from centroidkv.models.transformers_model import TransformersModel
from centroidkv.serving import drafts
from centroidkv.serving.drafts import ANSWERS_PER_CLUSTER, LOOK_EVERY, DraftStore
from centroidkv.types import Drafts
from word_bank import ask, build_and_warm


class Eager(Pace):
    def length(self, kind: Kind, most: int, *, behind: int = 1) -> int:
        return most


@pytest.fixture
def eager(model: TransformersModel) -> Iterator[None]:
    """Let the shared model verify every guess."""
    before, model.pace = model.pace, Eager()
    yield
    model.pace = before


def opened(folder: Path, namespace: str = "one") -> DraftStore:
    return DraftStore(folder / "drafts.sqlite", namespace, quarantine=folder / "quarantine")


def test_answers_are_found_by_prompt_and_by_cluster(tmp_path: Path) -> None:
    store = opened(tmp_path)
    store.keep((1, 2), "plan/0", (5, 6))
    store.keep((1, 3), "plan/0", (7,))
    store.keep((1, 4), "plan/1", (8,))
    found = store.find((1, 2), "plan/0")
    assert (found.prompt, found.repeat, found.answers) == ((1, 2), (5, 6), ((7,),))
    assert store.find((9,), "").answers == ()
    store.close()
    again = opened(tmp_path)
    assert again.find((1, 3), "").repeat == (7,)
    again.close()


def test_a_newer_answer_replaces_an_older_one_and_a_cluster_gives_a_few(tmp_path: Path) -> None:
    store = opened(tmp_path)
    store.keep((1,), "c", (5,))
    store.keep((1,), "c", (6,))
    assert store.find((1,), "c").repeat == (6,)
    for number in range(50):
        store.keep((2, number), "c", (number,))
    answers = store.find((1,), "c").answers
    assert len(answers) == ANSWERS_PER_CLUSTER
    assert answers[-1] == (49,)
    store.close()


def test_no_namespace_sees_anothers_answers(tmp_path: Path) -> None:
    mine, theirs = opened(tmp_path), opened(tmp_path, "two")
    mine.keep((1, 2), "c", (5, 6))
    assert mine.find((1, 2), "c").repeat == (5, 6)
    assert theirs.find((1, 2), "c").repeat == ()
    assert theirs.find((1, 3), "c").answers == ()
    mine.close()
    theirs.close()


def test_many_answers_of_one_namespace_leave_those_of_another(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(drafts, "MOST_ANSWERS", 10)
    mine, theirs = opened(tmp_path), opened(tmp_path, "two")
    mine.keep((1, 2), "c", (5, 6))
    for number in range(3 * LOOK_EVERY):
        theirs.keep((3, 4), "c", (number,))
    for number in range(2 * LOOK_EVERY + 1):
        theirs.keep((4, number), "c", (number,))
    assert mine.find((1, 2), "c").repeat == (5, 6)
    kept = [k.answer for k in theirs.held(["two"])]
    assert kept == [(n,) for n in range(2 * LOOK_EVERY - 9, 2 * LOOK_EVERY + 1)]
    mine.close()
    theirs.close()


def test_an_answer_given_again_is_the_newest_and_has_one_age(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(drafts, "MOST_ANSWERS", 2)
    monkeypatch.setattr(drafts, "LOOK_EVERY", 1)
    store = opened(tmp_path)
    for prompt in (1, 2, 1, 3):
        store.keep((prompt,), "c", (prompt,))
    assert [k.answer for k in store.held(["one"])] == [(1,), (3,)]
    assert store._db.execute("SELECT COUNT(*) FROM drafts_ages").fetchone() == (2,)
    store.close()


def test_a_damaged_file_is_set_aside(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    (tmp_path / "drafts.sqlite").write_bytes(b"no database" * 100)
    store = opened(tmp_path)
    store.keep((1,), "", (5,))
    assert store.find((1,), "").repeat == (5,)
    store.close()
    assert "damaged" in caplog.text
    assert any((tmp_path / "quarantine").iterdir())


def test_a_repeated_question_is_decoded_from_its_draft_with_the_same_tokens(
    open_engine: Callable[..., Engine], eager: None
) -> None:
    engine = open_engine()
    build_and_warm(engine)
    question = "please block my lost card"
    cold = ask(engine, question, reuse="off")
    first = ask(engine, question)
    engine.flush()
    second = ask(engine, question)
    assert cold.token_ids == first.token_ids == second.token_ids
    assert cold.usage.drafted_tokens == 0
    assert second.usage.drafted_tokens == second.usage.completion_tokens > 0


def test_drafts_can_be_switched_off(open_engine: Callable[..., Engine], eager: None) -> None:
    engine = open_engine(drafts=False)
    build_and_warm(engine)
    answers = [ask(engine, "please block my lost card") for _ in range(2)]
    assert answers[1].usage.reused_tokens > 0
    assert [a.usage.drafted_tokens for a in answers] == [0, 0]
    assert not (engine.store.path / "drafts.sqlite").exists()


def test_the_same_question_again_computes_one_prompt_token(
    open_engine: Callable[..., Engine],
) -> None:
    engine = open_engine()
    build_and_warm(engine)
    question = "please block my lost card"
    cold = ask(engine, question, reuse="off")
    first, second = ask(engine, question), ask(engine, question)
    assert cold.token_ids == first.token_ids == second.token_ids
    assert 0 < first.usage.reused_tokens < first.usage.prompt_tokens - 1
    # Its arena was not given to anybody else meanwhile.
    assert second.usage.computed_tokens == 1
    assert engine.check().is_clean


def test_a_read_only_store_guesses_from_the_prompt(
    open_engine: Callable[..., Engine], eager: None
) -> None:
    with open_engine() as engine:
        build_and_warm(engine)
        cold = ask(engine, "please block my lost card", reuse="off")
    reading = open_engine(read_only=True)
    prompt = (1, 2, 3)
    assert reading._learner.drafts(prompt, None) == Drafts(prompt)
    assert ask(reading, "please block my lost card").token_ids == cold.token_ids


def test_a_damaged_answer_costs_time_and_no_answer(
    open_engine: Callable[..., Engine], tmp_path: Path
) -> None:
    prompt = "What does a wire to another country cost? " * 8
    with open_engine() as engine:
        cold = engine.generate(prompt, max_tokens=24, reuse="off").token_ids
        assert engine.generate(prompt, max_tokens=24).token_ids == cold
    with sqlite3.connect(tmp_path / "store/drafts.sqlite") as db:
        packed = pack([*cold[:3], 1 << 31, 10**6])
        assert db.execute("UPDATE drafts SET answer = ?", (packed,)).rowcount > 0
    db.close()
    with open_engine() as engine:
        assert engine.generate(prompt, max_tokens=24).token_ids == cold
