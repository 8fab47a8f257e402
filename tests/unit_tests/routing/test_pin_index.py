"""Choosing pins by what was found: a scan over all clusters and all cuts is the oracle."""

from dataclasses import replace

import numpy as np
import pytest

from centroidkv.routing.pin_index import PinIndex
from centroidkv.types import Cluster, Passage

TEXTS = ["a" * 100, "b" * 200, "c" * 50, "d" * 400, "e" * 10, "f" * 300]
PASSAGES = {t[0]: Passage(t[0], t) for t in TEXTS}


def cluster(number: int, pins: str, at: float = 0.0) -> Cluster:
    centroid = np.array([at, 0.0], np.float32)
    return Cluster(number, centroid, "q", ("q",), tuple(pins), radius=1.0, num_members=1)


def index(*clusters: Cluster) -> PinIndex:
    made = PinIndex()
    made.put(clusters, PASSAGES)
    return made


def cost(pins: str, found: str, carry_cost: float) -> float:
    """What a prompt costs that begins with `pins` and must hold `found`."""
    missing = sum(len(PASSAGES[p].text) for p in set(found) - set(pins))
    return missing + carry_cost * sum(len(PASSAGES[p].text) for p in pins)


def best(made: PinIndex, found: str, first: Cluster, *, at: float = 0.0, carry_cost: float = 0.05):
    return made.best(
        [PASSAGES[p].text for p in found],
        np.array([at, 0.0], np.float32),
        carry_cost=carry_cost,
        first=first,
    )


@pytest.mark.parametrize("carry_cost", [0.0, 0.05, 0.4])
def test_no_cluster_and_no_cut_costs_less(carry_cost: float) -> None:
    random = np.random.default_rng(0)
    for _ in range(200):
        lists = [
            "".join(random.permutation(list("abcdef"))[: random.integers(0, 5)]) for _ in "123"
        ]
        clusters = [cluster(i, pins) for i, pins in enumerate(lists)]
        found = "".join(random.permutation(list("abcdef"))[: random.integers(1, 4)])
        cheapest = min(
            cost(pins[:cut], found, carry_cost) for pins in lists for cut in range(len(pins) + 1)
        )
        chosen = best(index(*clusters), found, clusters[0], carry_cost=carry_cost)
        pins = lists[chosen.cluster.id][: chosen.num_pins] if chosen else ""
        assert cost(pins, found, carry_cost) == pytest.approx(cheapest)
        if carry_cost == 0.0:
            nearest = cost(lists[0], found, 0.0)
            assert cost(pins, found, 0.0) <= nearest, "less is covered than by the nearest"
        assert not chosen or pins[-1] in found, "a pin behind the last one found"


def test_of_equals_the_routed_cluster_is_taken_then_the_nearest() -> None:
    clusters = [cluster(0, "ab", at=3.0), cluster(1, "abf", at=1.0), cluster(2, "ab", at=2.0)]
    made = index(*clusters)
    for first in clusters:
        chosen = best(made, "ab", first, at=1.0)
        assert chosen is not None and (chosen.cluster.id, chosen.num_pins) == (first.id, 2)
    chosen = best(made, "ab", cluster(9, "e"), at=1.9)
    assert chosen is not None and chosen.cluster.id == 2


def test_where_no_pin_was_found_there_is_no_choice() -> None:
    clusters = [cluster(0, "ab"), cluster(1, "")]
    assert best(index(*clusters), "cd", clusters[0]) is None
    assert best(index(), "cd", clusters[0]) is None


def test_pins_that_cost_more_to_carry_than_they_spare_are_left_out() -> None:
    one = cluster(0, "de")  # 400 characters to carry for 10 that are spared
    assert best(index(one), "e", one, carry_cost=0.1) is None
    assert best(index(one), "e", one, carry_cost=0.0) is not None


def test_a_cluster_that_is_added_later_is_found() -> None:
    made, first = index(cluster(0, "ab")), cluster(0, "ab")
    assert best(made, "f", first) is None
    made.put([cluster(1, "fa")], PASSAGES)
    chosen = best(made, "fa", first)
    assert chosen is not None and (chosen.cluster.id, chosen.num_pins) == (1, 2)


def test_a_pin_whose_passage_is_gone_takes_no_place() -> None:
    made = index(cluster(0, "a?b"))
    chosen = best(made, "b", cluster(0, "a?b"))
    assert chosen is not None and chosen.num_pins == 2


def test_with_a_domain_only_clusters_that_serve_it_lend_their_pins() -> None:
    cards = replace(cluster(0, "abc"), domain="cards")
    loans = replace(cluster(1, "a"), domain="loans")
    fees = replace(cluster(2, "bd"), domain="fees", guests=("loans",))
    made = index(cards, loans, fees)
    texts = [PASSAGES[p].text for p in "abc"]
    here = np.array([0.0, 0.0], np.float32)

    def lender(domain: str | None) -> int | None:
        chosen = made.best(texts, here, carry_cost=0.05, first=loans, domain=domain)
        return chosen.cluster.id if chosen else None

    assert [lender(d) for d in (None, "cards", "loans", "funds")] == [0, 0, 2, None]
