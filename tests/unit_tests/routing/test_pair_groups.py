"""Groups follow the labels, and one wrong label does not join what many hold apart."""

import numpy as np

from centroidkv.routing.labelled_pairs import LabelledPair
from centroidkv.routing.pair_groups import group_questions


def sets_of(groups: dict[str, int]) -> set[frozenset[str]]:
    return {frozenset(t for t in groups if groups[t] == n) for n in set(groups.values())}


def pair(a: str, b: str, same: int) -> LabelledPair:
    return LabelledPair(a, b, bool(same))


def test_links_make_groups_and_the_rest_stands_alone() -> None:
    found = group_questions([pair("a", "b", 1), pair("b", "c", 1), pair("c", "d", 0)])
    assert sets_of(found) == {frozenset("abc"), frozenset("d")}
    assert sorted(set(found.values())) == [0, 1]
    assert group_questions([]) == {}


def test_one_wrong_label_does_not_join_two_groups() -> None:
    random = np.random.default_rng(0)
    pairs = [
        pair(f"{x}{i}", f"{y}{j}", x == y)
        for x, y in ("aa", "bb", "ab")
        for i, j in random.integers(0, 12, (40, 2))
        if (x, i) != (y, j)
    ]
    right = sets_of(group_questions(pairs))
    assert right == {frozenset(f"{x}{i}" for i in range(12)) for x in "ab"}
    assert sets_of(group_questions([*pairs, pair("a3", "b5", 1)])) == right


def test_a_question_paired_with_itself_and_contradictions_are_borne() -> None:
    assert sets_of(group_questions([pair("a", "a", 1)])) == {frozenset("a")}
    torn = [pair("a", "b", 1), pair("b", "a", 0)]
    assert sets_of(group_questions(torn)) == {frozenset("a"), frozenset("b")}


def test_the_order_of_the_pairs_does_not_matter() -> None:
    random = np.random.default_rng(1)
    ends = random.integers(0, 30, (120, 2))
    pairs = [pair(f"q{i}", f"q{j}", i % 3 == j % 3) for i, j in ends if i != j]
    assert group_questions(pairs[::-1]) == group_questions(pairs)
