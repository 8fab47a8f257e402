"""What clusters pin keeps every budget, and is shared where the store is small."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from centroidkv.routing.pin_lists import Ballot, pin_lists
from centroidkv.routing.pin_order import distinct_tokens

PASSAGES = [f"p{i:02d}" for i in range(40)]
TOKENS = {p: 20 + 7 * i for i, p in enumerate(PASSAGES)}


def clusters(number: int = 60, *, seed: int = 0, max_pins: int = 6, max_tokens: int = 900):
    """Clusters in six places; those of one place vote for much the same."""
    random = np.random.default_rng(seed)
    places = random.standard_normal((6, 4)).astype(np.float32) * 5
    ballots, vectors = [], []
    for i in range(number):
        near = 6 * (i % 6)
        liked = random.choice(np.arange(near, near + 10), 8, replace=False)
        votes = {PASSAGES[p]: float(random.uniform(0.1, 3)) for p in liked}
        ballots.append(Ballot(votes, max_pins, max_tokens))
        vectors.append(places[i % 6] + random.standard_normal(4) * 0.1)
    return ballots, np.array(vectors, np.float32)


def held(ballots: list[Ballot], lists: list[tuple[str, ...]]) -> float:
    """The share of all votes that the clusters' own pins hold."""
    of = sum(b.votes.get(p, 0.0) for b, pins in zip(ballots, lists, strict=True) for p in pins)
    return of / sum(sum(b.votes.values()) for b in ballots)


def test_without_a_budget_each_cluster_pins_what_its_members_vote_for() -> None:
    ballots, vectors = clusters(max_tokens=9999)
    lists = pin_lists(ballots, vectors, TOKENS, store_tokens=None)
    for ballot, pins in zip(ballots, lists, strict=True):
        wanted = sorted(ballot.votes, key=lambda p: -ballot.votes[p])[:6]
        assert set(pins) == set(wanted)
    assert pin_lists(ballots, vectors, TOKENS, store_tokens=10**9) == lists


@pytest.mark.parametrize("store_tokens", [30, 500, 1500, 3000, 6000])
def test_the_stores_budget_is_never_exceeded(store_tokens: int) -> None:
    ballots, vectors = clusters()
    lists = pin_lists(ballots, vectors, TOKENS, store_tokens=store_tokens)
    assert 0 < distinct_tokens(lists, TOKENS) <= store_tokens
    assert lists == pin_lists(ballots, vectors, TOKENS, store_tokens=store_tokens)


@settings(deadline=None, max_examples=30)
@given(st.integers(1, 4000), st.integers(1, 8), st.integers(1, 1200), st.integers(0, 99))
def test_no_budget_is_exceeded(store_tokens, max_pins, max_tokens, seed) -> None:
    ballots, vectors = clusters(25, seed=seed, max_pins=max_pins, max_tokens=max_tokens)
    lists = pin_lists(ballots, vectors, TOKENS, store_tokens=store_tokens)
    assert distinct_tokens(lists, TOKENS) <= store_tokens
    for pins in lists:
        assert len(set(pins)) == len(pins) <= max_pins
        assert sum(TOKENS[p] for p in pins) <= max_tokens


def test_a_larger_store_holds_more_of_the_votes() -> None:
    ballots, vectors = clusters()
    free = held(ballots, pin_lists(ballots, vectors, TOKENS, store_tokens=None))
    shares = [
        held(ballots, pin_lists(ballots, vectors, TOKENS, store_tokens=n))
        for n in (300, 2000, 6000)
    ]
    assert shares[0] < shares[1] < shares[2] <= free
    assert shares[2] > 0.7 * free, "six places, and room for six lists"


def test_clusters_that_vote_alike_share_a_list() -> None:
    ballots, vectors = clusters()
    lists = pin_lists(ballots, vectors, TOKENS, store_tokens=2500)
    assert len(set(lists)) < len(lists) / 2
    for place in range(6):
        for ballot, pins in list(zip(ballots, lists, strict=True))[place::6]:
            assert set(pins) & set(ballot.votes), "pins that none of its members asked for"


def test_a_shared_list_obeys_the_strictest_of_its_clusters() -> None:
    ballots, vectors = clusters(12)
    strict = [Ballot(b.votes, 2 if i % 2 else 6, b.max_tokens) for i, b in enumerate(ballots)]
    lists = pin_lists(strict, vectors, TOKENS, store_tokens=900)
    for ballot, pins in zip(strict, lists, strict=True):
        assert len(pins) <= ballot.max_pins


def test_clusters_without_votes_pin_nothing_of_their_own() -> None:
    ballots, vectors = clusters(6)
    silent = [Ballot({}, 6, 900) for _ in range(6)]
    lists = pin_lists(silent, vectors, TOKENS, store_tokens=None)
    assert lists == [()] * 6
    mixed = pin_lists([*ballots, *silent], np.vstack([vectors] * 2), TOKENS, store_tokens=400)
    assert distinct_tokens(mixed, TOKENS) <= 400
