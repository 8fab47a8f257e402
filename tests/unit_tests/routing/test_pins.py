"""Pins are voted for, fit their budgets, and stand in the same order everywhere."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from centroidkv.routing.pins import canonical_order, choose, vote

names = st.sampled_from("abcdefgh")
popularity = st.dictionaries(names, st.floats(0, 10), max_size=8)


def test_a_vote_is_worth_one_over_the_rank() -> None:
    assert vote([["a", "b"], ["b", "a"], ["c"]]) == {"a": 1.5, "b": 1.5, "c": 1.0}
    assert vote([]) == vote([[]]) == {}


def test_the_most_wanted_are_chosen_and_ties_are_settled_by_id() -> None:
    votes = {"b": 1.0, "a": 1.0, "c": 2.0}
    assert choose(votes, dict.fromkeys("abc", 1), max_pins=2, max_tokens=9) == ["c", "a"]


def test_a_passage_too_long_gives_its_place_to_the_next() -> None:
    votes, tokens = {"a": 3.0, "b": 2.0, "c": 1.0}, {"a": 5, "b": 9, "c": 4}
    assert choose(votes, tokens, max_pins=3, max_tokens=10) == ["a", "c"]


@given(st.dictionaries(names, st.floats(0, 9)), st.integers(1, 5), st.integers(0, 30), st.data())
def test_neither_budget_is_exceeded(votes, max_pins, max_tokens, data) -> None:
    tokens = {p: data.draw(st.integers(0, 20)) for p in votes}
    chosen = choose(votes, tokens, max_pins=max_pins, max_tokens=max_tokens)
    assert len(chosen) == len(set(chosen)) <= max_pins
    assert sum(tokens[p] for p in chosen) <= max_tokens
    assert [votes[p] for p in chosen] == sorted((votes[p] for p in chosen), reverse=True)


@given(popularity, st.lists(names, unique=True), st.lists(names, unique=True))
def test_the_order_is_the_same_in_every_cluster(popularity, one, other) -> None:
    """Whatever two clusters share stands in the same order in both."""
    first, second = canonical_order(one, popularity), canonical_order(other, popularity)
    assert sorted(first) == sorted(one)
    assert [p for p in first if p in second] == [p for p in second if p in first]


@pytest.mark.parametrize("given_order", [("a", "b", "c"), ("c", "b", "a"), ("b", "a", "c")])
def test_the_order_does_not_depend_on_how_pins_were_listed(given_order) -> None:
    assert canonical_order(given_order, {"b": 2.0, "a": 1.0, "c": 1.0}) == ("b", "a", "c")
