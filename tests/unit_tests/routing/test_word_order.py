"""Exchanged roles are seen; a question that only begins elsewhere is not taken for one."""

import pytest

from centroidkv.routing.pair_conflicts import conflict, words


@pytest.mark.parametrize(
    ("one", "other", "reason"),
    [
        ("move money from savings to checking", "move money from checking to savings", True),
        ("Does Anna pay Peter?", "Does Peter pay Anna?", True),
        ("convert my pounds to euros", "convert euros to my pounds", True),
        ("paid before the card was lost", "the card was lost before paid", True),
        ("Why is my withdrawal pending?", "My withdrawal is pending, why?", False),
        (
            "How long will it take to get to Spain?",
            "To get to Spain, how long will it take?",
            False,
        ),
        ("cards and loans", "loans and cards", False),
        ("My limit is the problem", "the problem is my limit", False),
        ("I lost my card, what now?", "what now? I lost my card", False),
    ],
)
def test_phrases_exchanged_around_a_relation_conflict(one: str, other: str, reason: bool) -> None:
    for a, b in ((one, other), (other, one)):
        assert (conflict(words(a), words(b)) == "phrases exchanged") is reason


@pytest.mark.parametrize(
    ("one", "other", "differs"),
    [
        ("How long is a wire to China?", "how long does a wire from China take", True),
        ("Can I change from AUD to GBP?", "I want to change to AUD from GBP", True),
        ("How long is a wire to China?", "a wire to China, how long", False),
        ("I got cash from the machine", "went to the machine, why is it pending", False),
    ],
)
def test_source_and_target_conflict(one: str, other: str, differs: bool) -> None:
    for a, b in ((one, other), (other, one)):
        assert (conflict(words(a), words(b)) == "direction differs") is differs


@pytest.mark.parametrize(
    ("one", "other", "differs"),
    [
        ("Not all customers can vote", "All customers can not vote", True),
        ("not two years ago it was free", "two years ago it was not free", True),
        ("my card payment failed", "my card payment", True),
        ("he almost paid the bill", "he paid the bill", True),
        ("Why isn't my card working?", "My card isn't working", False),
        ("My card has not arrived", "My card has not come", False),
        ("why did my transfer not work", "why didn't my transfer work", False),
        ("I am not unhappy with my loan", "I am unhappy with my loan", True),
    ],
)
def test_scope_and_strength_of_negations(one: str, other: str, differs: bool) -> None:
    for a, b in ((one, other), (other, one)):
        assert (conflict(words(a), words(b)) == "negation differs") is differs
