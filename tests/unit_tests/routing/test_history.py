"""Questions seen are kept once, and placed ones do not wait any longer."""

import sqlite3
from pathlib import Path

import numpy as np
import pytest

from centroidkv.routing.history import History, Seen, open_history
from centroidkv.types import Passage

VECTOR = np.arange(4, dtype=np.float32) / 7
CARD = Passage.of("A card is blocked.", {"title": "카드", "n": 1})
LOAN = Passage.of("A loan is repaid.")


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "history.sqlite"


@pytest.fixture
def history(path: Path):
    history = History(path, "one")
    yield history
    history.close()


def seen(question: str, *passages: Passage) -> Seen:
    return Seen(question, VECTOR, tuple(p.id for p in passages))


def test_a_question_comes_back_as_it_was_seen(history: History) -> None:
    history.add(seen("카드 분실?", CARD, LOAN), [CARD, LOAN], is_placed=False)
    (found,) = history.all()
    assert found.question == "카드 분실?" and found.passages == (CARD.id, LOAN.id)
    assert found.embedding.dtype == np.float32
    assert found.embedding.tobytes() == VECTOR.tobytes()
    assert history.passages([LOAN.id, "unknown", CARD.id]) == {LOAN.id: LOAN, CARD.id: CARD}


def test_the_history_survives_closing(path: Path) -> None:
    first = History(path, "one")
    first.add(seen("a", CARD), [CARD], is_placed=False)
    first.close()
    second = History(path, "one")
    assert [s.question for s in second.waiting()] == ["a"]
    assert second.passages([CARD.id]) == {CARD.id: CARD}
    second.close()


def test_a_question_known_already_changes_nothing(history: History) -> None:
    history.add(seen("a", CARD), [CARD], is_placed=False)
    history.add(seen("a", LOAN), [LOAN], is_placed=True)
    assert history.count() == 1
    assert [s.passages for s in history.waiting()] == [(CARD.id,)]


def test_questions_come_oldest_first(history: History) -> None:
    for question in "cab":
        history.add(seen(question), [], is_placed=question == "a")
    assert [s.question for s in history.all()] == ["c", "a", "b"]
    assert [s.question for s in history.waiting()] == ["c", "b"]
    assert history.count() == 3


def test_placed_questions_wait_no_longer(history: History) -> None:
    for question in "abc":
        history.add(seen(question), [], is_placed=False)
    history.place(["a", "c", "unknown"])
    assert [s.question for s in history.waiting()] == ["b"]
    assert history.count() == 3
    history.place([])


def test_another_namespace_sees_none_of_it(path: Path, history: History) -> None:
    history.add(seen("a", CARD), [CARD], is_placed=False)
    other = History(path, "two")
    assert other.all() == other.waiting() == [] and other.count() == 0
    other.add(seen("a"), [], is_placed=False)
    other.place(["a"])
    assert [s.question for s in history.waiting()] == ["a"]
    other.close()


def test_another_namespace_never_gets_the_texts_of_this_one(path: Path, history: History) -> None:
    """Users may number their passages themselves, each tenant from 1."""
    mine, theirs = Passage("1", "the first tenant's text"), Passage("1", "the second's")
    history.add(seen("a", mine), [mine], is_placed=False)
    other = History(path, "two")
    assert other.passages(["1"]) == {}
    other.add(seen("a", theirs), [theirs], is_placed=False)
    assert other.passages(["1"]) == {"1": theirs}
    assert history.passages(["1"]) == {"1": mine}
    other.close()


def test_a_question_that_cannot_be_kept_does_not_stop_later_ones(history: History) -> None:
    odd = Passage("odd", "a lone surrogate \ud800")
    with pytest.raises(UnicodeEncodeError):
        history.add(seen("a", odd), [odd], is_placed=False)
    history.add(seen("b", CARD), [CARD], is_placed=False)
    assert [s.question for s in history.all()] == ["b"]


def test_the_file_is_its_owners_alone(path: Path, history: History) -> None:
    assert path.stat().st_mode & 0o777 == 0o600


@pytest.mark.parametrize("garbage", [b"", b"garbage" * 500])
def test_a_damaged_history_does_not_keep_the_store_from_opening(
    path: Path, tmp_path: Path, garbage: bytes
) -> None:
    quarantine = tmp_path / "quarantine"
    first = open_history(path, "one", quarantine=quarantine)
    first.add(seen("a"), [], is_placed=False)
    first.close()
    path.write_bytes(garbage)
    second = open_history(path, "one", quarantine=quarantine)
    assert second.all() == []
    second.add(seen("b"), [], is_placed=False)
    assert second.count() == 1
    assert not garbage or (quarantine / path.name).read_bytes() == garbage
    second.close()


def test_a_repeated_question_is_counted_and_dated(history: History) -> None:
    for question in "aab":
        history.add(seen(question, CARD), [CARD], is_placed=True)
    one, two = history.asked()
    assert (one.seen.question, one.times, one.seen.weight) == ("a", 2, 2.0)
    assert (two.times, two.is_built) == (1, False)
    assert one.last_seen_s > 0
    assert history.asked(since_s=two.last_seen_s + 60) == []
    assert [a.seen.question for a in history.asked(since_s=one.last_seen_s)] == ["a", "b"]


def test_a_build_leaves_its_questions_and_lets_go_of_the_last_ones(history: History) -> None:
    history.add_built([seen("a", CARD), seen("b", CARD)], {CARD.id: CARD}, {"a": "cards"})
    history.add(seen("b", LOAN), [LOAN], is_placed=True)
    first = {a.seen.question: a for a in history.asked(since_s=1e12)}
    assert first.keys() == {"a", "b"}, "built ones are of any age"
    assert (first["a"].times, first["a"].seen.domain, first["b"].times) == (0, "cards", 1)
    assert first["b"].seen.passages == (CARD.id,) and first["b"].seen.weight == 2.0
    history.add_built([seen("c", LOAN)], {LOAN.id: LOAN}, {})
    second = {a.seen.question: a for a in history.asked()}
    assert second.keys() == {"b", "c"}, "asked ones stay"
    assert not second["b"].is_built and second["c"].is_built
    assert history.waiting() == []


def test_a_file_of_an_earlier_version_is_read_on(path: Path) -> None:
    import json

    db = sqlite3.connect(path)
    db.execute(
        "CREATE TABLE seen (number INTEGER PRIMARY KEY, namespace TEXT NOT NULL, question TEXT"
        " NOT NULL, embedding BLOB NOT NULL, passages TEXT NOT NULL, is_placed INTEGER NOT NULL,"
        " UNIQUE (namespace, question))"
    )
    row = ("one", "old", VECTOR.tobytes(), json.dumps([CARD.id]), 0)
    db.execute("INSERT INTO seen VALUES (NULL, ?, ?, ?, ?, ?)", row)
    db.commit()
    db.close()
    history = History(path, "one")
    history.add(Seen("new", VECTOR, (), "loans"), [], is_placed=True)
    assert [(a.seen.question, a.times, a.seen.domain) for a in history.asked()] == [
        ("old", 1, ""),
        ("new", 1, "loans"),
    ]
    history.close()


def test_passages_give_way_to_their_successors(history: History, path: Path) -> None:
    new = Passage.of("A card is blocked at once.", {"id": "1"})
    history.add(seen("a", CARD, LOAN), [CARD, LOAN], is_placed=True)
    history.add(seen("b", LOAN), [LOAN], is_placed=True)
    history.add(seen("c", LOAN, CARD), [], is_placed=True)
    other = History(path, "two")
    other.add(seen("a", CARD), [CARD], is_placed=True)
    history.replace_passages({CARD.id: new, LOAN.id: None})
    assert [a.seen.passages for a in history.asked()] == [(new.id,), (), (new.id,)]
    assert history.known_passages() == {new.id: new}
    assert [a.seen.passages for a in other.asked()] == [(CARD.id,)], "another tenant's stay"
    assert other.known_passages() == {CARD.id: CARD}
    other.close()


def test_a_second_text_of_a_passage_id_is_kept_and_forgotten_for_itself(history: History) -> None:
    first, second = Passage("doc-1", "the first text"), Passage("doc-1", "the second text")
    history.note_passages([first])
    history.note_passages([second, first])
    assert history.passage_texts() == [first, second]
    history.forget_passages([first])
    assert history.passage_texts() == [second]
    assert history.passages(["doc-1"]) == {"doc-1": second}
    history.forget_passages([second])
    assert history.passage_texts() == []
