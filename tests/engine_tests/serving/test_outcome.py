"""What happened to a request is named from counts alone."""

import numpy as np
import pytest

from centroidkv import Engine
from centroidkv.kv.blocks import BLOCK_TOKENS
from centroidkv.serving.outcome import Layout, classify, layout
from centroidkv.types import Passage, Prompt, Record, Route


def prompt(text: str) -> Prompt:
    """A prompt whose tokens are characters."""
    return Prompt(text, tuple(range(len(text))), tuple(range(len(text))))


def record(*texts: str, num_pins: int = 0, question: str = "Is it free?") -> Record:
    passages = tuple(Passage.of(t) for t in texts)
    route = Route(question, np.zeros(2, np.float32), None, 0.0, is_admitted=False)
    return Record(question, route, passages, num_pins, frozenset(), 0.0)


TEXT = "<sys>Be brief.\n\nCARDS\n\nLOANS\n\nQuestion: Is it free?<end>"


def place(found: Record | None, text: str = TEXT, question: str = "Is it free?") -> Layout:
    return layout(prompt(text), found, question=question, user_text=text[5:-5])


def test_the_head_ends_where_the_first_passage_begins() -> None:
    where = place(record("CARDS", "LOANS", num_pins=1))
    assert TEXT[: where.head] == "<sys>Be brief.\n\n"
    assert TEXT[: where.pins_end].endswith("CARDS")
    assert where.question == len("Is it free?") and not where.is_question_first


def test_the_pins_end_with_the_last_of_them_wherever_it_stands() -> None:
    assert TEXT[: place(record("LOANS", "CARDS", num_pins=2)).pins_end].endswith("LOANS")
    assert place(record("CARDS")).pins_end == 0
    assert place(record("GONE", "CARDS", num_pins=1)).pins_end == 0


def test_passages_are_found_without_the_space_around_them() -> None:
    assert place(record(" CARDS\n ", num_pins=1)) == place(record("CARDS", num_pins=1))


def test_without_passages_the_head_ends_where_the_users_text_begins() -> None:
    assert place(None).head == place(record()).head == len("<sys>")
    assert place(None).pins_end == 0 and not place(None).is_question_first


def test_a_question_before_its_passages_is_noticed() -> None:
    text = "Question: Is it free?\n\nCARDS\n\nLOANS"
    assert place(record("CARDS", "LOANS"), text).is_question_first
    assert not place(record("CARDS"), text + "\n\nSo: Is it free?").is_question_first
    assert not place(record("CARDS"), text, question="Something else?").is_question_first


def test_an_unknown_question_has_no_length() -> None:
    assert place(None, question="").question == 0
    assert place(None, question="never asked").question == 0


def test_passages_that_are_not_in_the_prompt_leave_no_head() -> None:
    where = place(record("GONE"))
    assert (where.head, where.pins_end) == (0, 0)


def test_tokens_are_counted_where_a_character_has_several() -> None:
    text = "한CARDS"
    tokens = Prompt(text, tuple(range(8)), (0, 0, 0, 1, 2, 3, 4, 5))
    assert layout(tokens, record("CARDS", num_pins=1), question="", user_text=text).head == 3


LONG = prompt("x" * 1000)


@pytest.mark.parametrize(
    ("head", "pins_end", "reused", "expected"),
    [
        # pinned: all of the pins must have been reused
        (100, 800, 1000 - BLOCK_TOKENS - 20, ("hit", "pinned_prefix")),
        (100, 800, 999, ("hit", "pinned_prefix")),
        (100, 800, 1000 - BLOCK_TOKENS - 21, ("partial", "extra_passages")),
        (100, 800, 800, ("partial", "extra_passages")),
        (100, 800, 799, ("partial", "prefix_differs")),
        (100, 110, 110, ("partial", "extra_passages")),
        # the head alone, or less than a block behind it, is a miss
        (100, 800, 100 + BLOCK_TOKENS - 1, ("miss", "not_admitted")),
        (100, 800, 0, ("miss", "not_admitted")),
        (100, 800, 100 + BLOCK_TOKENS, ("partial", "prefix_differs")),
        # without pins
        (100, 0, 999, ("hit", "repeated_prefix")),
        (100, 0, 500, ("partial", "prefix_differs")),
    ],
)
def test_outcome_and_reason_follow_from_the_counts(head, pins_end, reused, expected) -> None:
    where = Layout(head, pins_end, 20, is_question_first=False)
    found = record("CARDS", num_pins=1 if pins_end else 0)
    assert classify(LONG, where, found, reused=reused, miss="not_admitted") == expected


def test_a_long_head_reused_alone_is_no_hit() -> None:
    where = Layout(980, 0, 20, is_question_first=False)
    assert classify(LONG, where, None, reused=980, miss="no_route") == ("miss", "head_only")
    assert classify(LONG, where, None, reused=0, miss="no_route") == ("miss", "no_route")
    assert classify(LONG, where, None, reused=980, miss="block_damaged") == (
        "miss",
        "block_damaged",
    )


@pytest.mark.parametrize(
    ("pins_end", "reused", "expected"),
    [
        (800, 768, ("hit", "pinned_prefix")),  # the pins' whole chunks; 232 tokens computed
        (600, 512, ("partial", "extra_passages")),
        (600, 256, ("partial", "prefix_differs")),
        (200, 0, ("miss", "not_admitted")),  # pins that fill no chunk cannot be reused alone
        (200, 768, ("hit", "pinned_prefix")),
        (0, 768, ("hit", "repeated_prefix")),
    ],
)
def test_on_a_grid_pins_and_hits_are_counted_in_chunks(pins_end, reused, expected) -> None:
    where = Layout(100, pins_end, 20, is_question_first=False)
    found = record("CARDS", num_pins=1 if pins_end else 0)
    assert classify(LONG, where, found, reused=reused, miss="not_admitted", grid=256) == expected


def test_a_prompt_without_blank_lines_is_not_one_long_question(engine: Engine) -> None:
    shared = "Cards are blocked in the app. " * 8
    engine.generate(f"{shared}{'Loans are repaid early. ' * 20}Is it free?", max_tokens=2)
    other = engine.generate(f"{shared}{'A transfer costs two euros. ' * 20}Is it?", max_tokens=2)
    assert 200 < other.usage.reused_tokens < 400 < other.usage.prompt_tokens
    assert (other.usage.outcome, other.usage.reason) == ("partial", "prefix_differs")
    assert other.usage.stored_tokens > 400
