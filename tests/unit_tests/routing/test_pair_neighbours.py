"""Past questions around a pair tell whether its sides belong together, and leak no label."""

import numpy as np
import pytest

from centroidkv.routing.labelled_pairs import LabelledPair
from centroidkv.routing.pair_neighbours import (
    NUM_FEATURES,
    PairNeighbours,
    held_out_features,
)

DIM, TOPICS, MEMBERS = 12, 4, 15


def vectors_of(random: np.random.Generator, topic: int, count: int) -> np.ndarray:
    centre = np.random.default_rng(topic).standard_normal(DIM)
    rows = centre + 0.5 * random.standard_normal((count, DIM))
    return (rows / np.linalg.norm(rows, axis=1, keepdims=True)).astype(np.float32)


@pytest.fixture(scope="module")
def past():
    """Return labelled pairs of past questions and the vectors of their sides."""
    random = np.random.default_rng(0)
    known = {(t, i): x for t in range(TOPICS) for i, x in enumerate(vectors_of(random, t, MEMBERS))}
    names = list(known)
    drawn = random.integers(0, len(names), (900, 2))
    ends = [(names[i], names[j]) for i, j in drawn if i != j]
    pairs = [LabelledPair(f"{a}", f"{b}", a[0] == b[0]) for a, b in ends]
    return pairs, np.stack([known[a] for a, _ in ends]), np.stack([known[b] for _, b in ends])


def test_new_questions_agree_with_their_own_topic_alone(past) -> None:
    around = PairNeighbours.fit(*past)
    random = np.random.default_rng(9)
    new = np.concatenate([vectors_of(random, t, 10) for t in range(TOPICS)])
    other = np.roll(new, 10, axis=0)
    twin = np.concatenate([vectors_of(random, t, 10) for t in range(TOPICS)])
    same, apart = around.features(new, twin), around.features(new, other)
    assert same.shape == (40, NUM_FEATURES)
    for column in range(5):
        assert same[:, column].mean() > apart[:, column].mean()
    assert (same[:, 0] > apart[:, 0]).mean() > 0.9


def test_features_are_symmetric_and_the_same_alone_and_among_others(past) -> None:
    around = PairNeighbours.fit(*past)
    _, u, v = past
    there = around.features(u[:50], v[:50])
    np.testing.assert_allclose(around.features(v[:50], u[:50]), there, rtol=1e-9)
    np.testing.assert_allclose(around.features(u[:1], v[:1]), there[:1], rtol=1e-6)


def test_a_past_question_belongs_to_its_own_group(past) -> None:
    pairs, u, v = past
    around = PairNeighbours.fit(pairs, u, v)
    same = np.array([p.same_answer for p in pairs])
    agree = np.exp(around.features(u, v)[:, 0])
    assert agree[same].min() > 0.9
    assert agree[~same].max() < 0.1


def test_without_past_questions_the_features_say_nothing(past) -> None:
    _, u, v = past
    assert not PairNeighbours.none(DIM).features(u[:5], v[:5]).any()


def test_held_out_features_do_not_see_the_labels_of_the_question(past) -> None:
    pairs, u, v = past
    before = held_out_features(pairs, u, v)
    lone = pairs[0].question
    turned = [
        LabelledPair(p.question, p.candidate, p.same_answer ^ (lone in (p.question, p.candidate)))
        for p in pairs
    ]
    asked = np.array([p.question == lone for p in pairs])
    np.testing.assert_array_equal(held_out_features(turned, u, v)[asked], before[asked])
    known = ~np.isnan(before).any(axis=1)
    assert 0.6 < known.mean() < 1


def test_groups_with_few_labels_are_shrunken_to_the_mean() -> None:
    vectors = np.eye(DIM, dtype=np.float32)
    many = [LabelledPair("a", "b", k % 4 == 0) for k in range(400)]
    few = [LabelledPair("c", "d", False)]
    good = [LabelledPair("e", "f", True)] * 400
    at = {name: vectors[i] for i, name in enumerate("abcdef")}
    pairs = [*many, *few, *good]
    u, v = (np.stack([at[getattr(p, s)] for p in pairs]) for s in ("question", "candidate"))
    around = PairNeighbours.fit(pairs, u, v)
    a, c, e = (
        float(around.ease[around.group[(around.vectors @ at[name]).argmax()]]) for name in "ace"
    )
    assert a < c < 0 < e
    assert abs(c) < abs(a) / 5
