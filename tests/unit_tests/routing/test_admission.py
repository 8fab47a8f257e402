"""Radii admit the share of members they promise, in small clusters too."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from centroidkv.routing.admission import EVERYWHERE, distance, radii


def clusters(sizes: list[int], *, seed: int = 0, dim: int = 16, scales=None):
    random = np.random.default_rng(seed)
    scales = scales or [1.0] * len(sizes)
    groups = [
        (random.standard_normal((n, dim)) * s + random.standard_normal(dim) * 10).astype(np.float32)
        for n, s in zip(sizes, scales, strict=True)
    ]
    return groups, np.stack([g.mean(0) for g in groups])


def test_distance_is_euclidean() -> None:
    one, other = np.array([0, 3], np.float32), np.array([4, 0], np.float32)
    assert distance(one, other) == distance(other, one) == 5.0


@given(
    st.lists(st.integers(60, 120), min_size=1, max_size=5),
    st.sampled_from([0.5, 0.8, 0.9, 0.95]),
    st.integers(0, 1000),
)
@settings(max_examples=40, deadline=None)
def test_about_the_quantiles_share_of_members_is_admitted(sizes, quantile, seed) -> None:
    groups, centroids = clusters(sizes, seed=seed)
    limits = radii(groups, centroids, quantile=quantile)
    admitted = [
        np.linalg.norm(g - c, axis=1) <= r
        for g, c, r in zip(groups, centroids, limits, strict=True)
    ]
    share = np.concatenate(admitted).mean()
    # Above rather than below: a member left out of its own centroid lies a little farther away.
    assert quantile - 0.1 <= share <= quantile + 0.15


def test_unseen_questions_of_the_same_kind_are_admitted_at_about_the_quantile() -> None:
    random = np.random.default_rng(0)
    shares = []
    for _ in range(50):
        known = random.standard_normal((12, 16)).astype(np.float32)
        centroid = known.mean(0, keepdims=True)
        (limit,) = radii([known], centroid, quantile=0.9)
        unseen = random.standard_normal((50, 16))
        shares.append((np.linalg.norm(unseen - centroid, axis=1) <= limit).mean())
    assert 0.8 <= np.mean(shares) <= 0.97


def test_at_the_whole_quantile_every_member_is_admitted() -> None:
    groups, centroids = clusters([30, 30, 30])
    for group, centroid, limit in zip(
        groups, centroids, radii(groups, centroids, quantile=1.0), strict=True
    ):
        assert (np.linalg.norm(group - centroid, axis=1) <= limit).all()


@given(st.integers(0, 100))
@settings(max_examples=20, deadline=None)
def test_a_larger_quantile_never_admits_less(seed: int) -> None:
    groups, centroids = clusters([3, 10, 40, 1], seed=seed)
    lower, upper = (radii(groups, centroids, quantile=q) for q in (0.6, 0.9))
    assert all(a <= b for a, b in zip(lower, upper, strict=True))


def test_a_cluster_of_one_gets_the_radius_of_all() -> None:
    groups, centroids = clusters([50, 50, 1])
    *others, single = radii(groups, centroids, quantile=0.9)
    assert min(others) * 0.8 <= single <= max(others) * 1.2


def test_small_clusters_are_pulled_towards_the_others_more_than_large_ones() -> None:
    sizes, scales = [200, 3, 100], [1.0, 0.1, 0.1]
    groups, centroids = clusters(sizes, scales=scales)
    wide, small, large = radii(groups, centroids, quantile=0.9)
    assert large < small < wide


def test_where_every_cluster_has_one_member_only_repetitions_are_admitted() -> None:
    groups, centroids = clusters([1, 1])
    assert radii(groups, centroids, quantile=0.95) == [0.0, 0.0]


def test_no_clusters_have_no_radii() -> None:
    assert radii([], np.empty((0, 4), np.float32), quantile=0.9) == []


@pytest.mark.parametrize("count", [2, 5])
def test_equal_members_give_a_radius_of_nothing(count: int) -> None:
    group = np.ones((count, 4), np.float32)
    assert radii([group], group[:1], quantile=0.9) == [0.0]


def test_chance_in_a_cluster_of_ten_hardly_moves_its_radius() -> None:
    """The clusters are of one width; what differs between them is which ten members they have."""
    groups, centroids = clusters([10] * 200)
    limits = radii(groups, centroids, quantile=0.95)
    assert max(limits) <= 1.2 * min(limits)


def test_foreign_questions_do_not_slip_in_by_the_widest_radius() -> None:
    random = np.random.default_rng(1)
    groups, centroids = clusters([8] * 300, dim=64)
    limits = np.array(radii(groups, centroids, quantile=0.95))
    held_out = centroids + random.standard_normal(centroids.shape) * np.sqrt(8 / 7)
    foreign = centroids + random.standard_normal(centroids.shape) * 1.5
    own, theirs = (np.linalg.norm(x - centroids, axis=1) <= limits for x in (held_out, foreign))
    assert own.mean() >= 0.85
    assert theirs.mean() <= 0.05


def test_without_a_quantile_every_question_is_admitted_and_the_radius_is_a_number() -> None:
    groups, centroids = clusters([3, 1])
    limits = radii(groups, centroids, quantile=None)
    assert limits == [EVERYWHERE] * 2
    assert all(
        distance(g[0] * 1e6, c) <= r < float("inf")
        for g, c, r in zip(groups, centroids, limits, strict=True)
    )
