"""Near misses found clusters once there are enough of them."""

import numpy as np
import pytest

from centroidkv.routing.growth import grow
from centroidkv.routing.history import Seen


def seen(question: str, *place: float, passages: tuple[str, ...] = ("a",)) -> Seen:
    return Seen(question, np.array(place, np.float32), passages)


NEAR = [seen("one", 0.0, 0.0), seen("two", 0.1, 0.0), seen("three", 0.0, 0.1)]


def test_nobody_waiting_founds_nothing() -> None:
    assert grow([], cluster_id=0, min_members=1, radius=1.0, max_pins=2) is None


@pytest.mark.parametrize(("min_members", "is_enough"), [(1, True), (3, True), (4, False)])
def test_a_cluster_needs_its_number_of_members(min_members: int, is_enough: bool) -> None:
    cluster = grow(NEAR, cluster_id=5, min_members=min_members, radius=0.5, max_pins=2)
    assert (cluster is not None) == is_enough


def test_a_cluster_is_the_mean_of_those_near_the_newest() -> None:
    waiting = [seen("far", 9.0, 9.0), *NEAR]
    cluster = grow(waiting, cluster_id=5, min_members=3, radius=0.5, max_pins=2)
    assert cluster is not None
    assert (cluster.id, cluster.num_members, cluster.radius) == (5, 3, 0.5)
    assert cluster.representative == "three" and cluster.members == ("two", "three")
    np.testing.assert_allclose(cluster.centroid, [1 / 30, 1 / 30], atol=1e-6)
    assert cluster.centroid.dtype == np.float32


def test_those_far_from_the_newest_do_not_count() -> None:
    waiting = [*NEAR, seen("far", 9.0, 9.0)]
    assert grow(waiting, cluster_id=0, min_members=2, radius=0.5, max_pins=2) is None


def test_pins_are_the_most_wanted_in_the_order_the_newest_found_them() -> None:
    waiting = [
        seen("one", 0.0, passages=("x", "y", "z")),
        seen("two", 0.0, passages=("y", "x")),
        seen("three", 0.0, passages=("z", "y", "x", "w")),
    ]
    cluster = grow(waiting, cluster_id=0, min_members=3, radius=0.5, max_pins=3)
    assert cluster is not None and cluster.pins == ("z", "y", "x")
    smaller = grow(waiting, cluster_id=0, min_members=3, radius=0.5, max_pins=1)
    assert smaller is not None and smaller.pins == ("y",)


def test_where_nothing_was_retrieved_nothing_is_pinned() -> None:
    waiting = [seen("one", 0.0, passages=())]
    cluster = grow(waiting, cluster_id=0, min_members=1, radius=0.5, max_pins=3)
    assert cluster is not None and cluster.pins == ()
