"""How the question reaches the model: the latest record whose passages are in the prompt."""

import threading
import time

import numpy as np
import pytest

from centroidkv.routing.records import RecordRing
from centroidkv.types import Passage, Record, Route


def record(question: str, *texts: str) -> Record:
    route = Route(question, np.zeros(2, np.float32), None, float("inf"), is_admitted=False)
    passages = tuple(Passage.of(t) for t in texts)
    return Record(question, route, passages, 0, frozenset(p.id for p in passages), 0.0)


def ring(*records: Record, size: int = 10) -> RecordRing:
    made = RecordRing(size)
    for one in records:
        made.put(one)
    return made


def test_a_record_is_found_by_its_passages() -> None:
    one, two = record("first?", "cards", "loans"), record("second?", "wires")
    found = ring(one, two)
    assert found.find("cards and loans. Question: first?") is one
    assert found.find("about wires") is two
    assert found.find("about nothing") is None


def test_of_the_same_passages_the_one_that_is_asked_is_taken() -> None:
    one, two = record("first?", "cards"), record("second?", "cards")
    both = ring(one, two)
    assert both.find("cards first?") is one
    assert both.find("cards second?") is two
    assert both.find("cards first?") is one


def test_the_latest_of_several_that_ask_the_same_is_taken() -> None:
    one, two = record("first?", "cards"), record("first?", "cards")
    assert ring(one, two).find("cards first?") is two


@pytest.mark.parametrize(
    ("text", "asked"),
    [
        ("cards. block my card now", "block my card now"),
        ("cards. block my card", "block my card"),
        ("cards. Human: block my card now. AI: no. Human: why?", "why?"),
        ("cards. Human: why? AI: so. Human: block my card", "block my card"),
        ("cards. card now", "card now"),
    ],
)
def test_of_questions_within_each_other_the_one_that_comes_last_is_asked(
    text: str, asked: str
) -> None:
    questions = ["block my card now", "block my card", "why?", "card now"]
    found = ring(*(record(q, "cards") for q in questions)).find(text)
    assert found is not None
    assert found.question == asked


def test_a_question_that_only_a_passage_asks_is_not_asked() -> None:
    other, own = record("how?", "how? by phone", "cards"), record("who?", "how? by phone", "cards")
    assert ring(own, other).find("how? by phone cards who?") is own
    asked = ring(own, other).find("how? by phone cards: who, in other words")
    assert asked is not None
    assert asked.question == ""


def test_a_question_that_is_told_need_not_stand_in_the_prompt() -> None:
    one, two = record("first?", "cards"), record("second?", "cards")
    assert ring(one, two).find("cards, in other words", "first?") is one
    assert ring(one, two).find("cards second?", "first?") is one


def test_a_question_in_other_words_has_the_only_record_that_waits() -> None:
    one, two = record("first?", "cards"), record("second?", "cards")
    found = ring(one)
    assert found.find("cards, in other words") is one
    found.put(two)
    assert found.find("cards, in other words again") is two


def test_of_several_that_wait_none_is_the_own_of_a_question_in_other_words() -> None:
    one, two = record("first?", "cards"), record("second?", "cards")
    found = ring(one, two)
    for _ in range(2):
        taken = found.find("cards, in other words")
        assert taken is not None
        assert (taken.question, taken.passages) == ("", two.passages)


def test_a_retrieval_that_no_prompt_came_of_waits_for_none_after_a_while(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    one, two = record("first?", "cards"), record("second?", "cards")
    found = ring(one)
    now = time.monotonic()
    monkeypatch.setattr(time, "monotonic", lambda: now + 61)
    found.put(two)
    assert found.find("cards, in other words") is two


def test_passages_are_found_without_the_space_around_them() -> None:
    one = record("q", "  cards\n")
    assert ring(one).find("<cards>") is one


def test_all_passages_must_be_there() -> None:
    assert ring(record("q?", "cards", "loans")).find("cards only") is None


def test_where_a_chain_drops_passages_question_and_first_passage_are_enough() -> None:
    one = record("what about cards?", "cards", "loans")
    assert ring(one).find("cards\n\nwhat about cards?") is one
    assert ring(one).find("loans\n\nwhat about cards?".replace("cards", "kards")) is None


def test_a_whole_record_goes_before_a_later_one_that_was_cut() -> None:
    whole, cut = record("q?", "cards"), record("q?", "cards", "loans")
    assert ring(whole, cut).find("cards q?") is whole


def test_a_record_without_passages_is_never_found() -> None:
    assert ring(record("q?")).find("q?") is None


def test_blank_passages_do_not_belong_to_every_prompt() -> None:
    assert ring(record("another?", " ", "")).find("a prompt of somebody else") is None


def test_the_oldest_records_are_forgotten() -> None:
    records = [record("q", f"passage {i};") for i in range(5)]
    kept = ring(*records, size=3)
    assert kept.find("passage 1;") is None
    assert kept.find("passage 2;") is records[2]


def test_many_threads_may_put_and_find() -> None:
    shared = RecordRing(50)

    def work(number: int) -> None:
        for i in range(50):
            shared.put(record("q", f"{number}-{i};"))
            shared.find(f"{number}-{i};")

    threads = [threading.Thread(target=work, args=(n,)) for n in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    last = record("q", "last")
    shared.put(last)
    assert shared.find("last") is last
