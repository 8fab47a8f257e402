"""Pins share prefixes, and what they take is counted once."""

from hypothesis import given
from hypothesis import strategies as st

from centroidkv.routing.pin_order import distinct_tokens, shared_order
from centroidkv.routing.pins import canonical_order

names = st.sampled_from("abcdefgh")
lists = st.lists(st.lists(names, unique=True), max_size=12)
TOKENS = {p: 10 * i for i, p in enumerate("abcdefgh", start=1)}


def test_a_shared_prefix_is_counted_once_and_only_as_a_prefix() -> None:
    tokens = {"a": 1, "b": 10, "c": 100}
    assert distinct_tokens([], tokens) == distinct_tokens([()], tokens) == 0
    assert distinct_tokens([("a", "b"), ("a", "c"), ("a",)], tokens) == 111
    assert distinct_tokens([("a", "b"), ("b", "a")], tokens) == 22
    assert distinct_tokens([("a", "b"), ("c", "b")], tokens) == 121


@given(lists)
def test_order_alone_changes_and_does_not_depend_on_how_lists_came(given_lists) -> None:
    popularity = {"c": 2.0, "a": 1.0}
    ordered = shared_order(given_lists, TOKENS, popularity)
    assert [sorted(x) for x in ordered] == [sorted(x) for x in given_lists]
    turned = shared_order([x[::-1] for x in given_lists[::-1]], TOKENS, popularity)
    assert turned[::-1] == ordered
    assert distinct_tokens(ordered, TOKENS) <= sum(TOKENS[p] for x in given_lists for p in x)


def test_two_lists_share_all_that_they_have_in_common() -> None:
    one, other = shared_order([list("abcd"), list("dxcb")], {**TOKENS, "x": 500}, {"a": 9.0})
    assert set(one[:3]) == set("bcd") and one[:3] == other[:3]


def test_less_is_stored_than_with_one_order_for_all() -> None:
    """b and c go together in one half, c and d in the other: no single order serves both."""
    given_lists = [*(["b", "c", x] for x in "efg"), *(["c", "d", x] for x in "efg")]
    tokens = {"b": 90, "c": 50, "d": 90, "e": 5, "f": 5, "g": 5}
    popularity = {"c": 3.0, "d": 2.0, "b": 1.0, "e": 0.9, "f": 0.8, "g": 0.7}
    alike = [canonical_order(x, popularity) for x in given_lists]
    ordered = shared_order(given_lists, tokens, popularity)
    assert distinct_tokens(ordered, tokens) <= distinct_tokens(alike, tokens)
    assert distinct_tokens(ordered, tokens) == 50 + 90 + 90 + 6 * 5


def test_what_nothing_shares_stands_by_popularity() -> None:
    popularity = {"b": 3.0, "a": 1.0, "h": 1.0}
    assert shared_order([["h", "a", "b"], []], TOKENS, popularity) == [("b", "a", "h"), ()]
