"""Spectral clustering of the past questions, whatever they look like."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from centroidkv.routing.clustering import nearest_centroid, spectral


def groups(sizes: list[int], *, dim: int = 8, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    random = np.random.default_rng(seed)
    centres = random.standard_normal((len(sizes), dim)) * 20
    points = [c + random.standard_normal((n, dim)) for c, n in zip(centres, sizes, strict=True)]
    return np.concatenate(points).astype(np.float32), np.repeat(range(len(sizes)), sizes)


@pytest.mark.parametrize("sizes", [[20, 20, 20], [40, 10, 10], [12] * 6])
def test_groups_far_apart_are_found(sizes: list[int]) -> None:
    points, truth = groups(sizes)
    labels = spectral(points, num_clusters=len(sizes), seed=0)
    pairs = set(zip(labels.tolist(), truth.tolist(), strict=True))
    assert len(pairs) == len(sizes), "a group was torn or two were joined"


@given(st.integers(5, 40), st.integers(1, 12), st.integers(1, 4), st.integers(0, 3))
@settings(max_examples=40, deadline=None)
def test_labels_run_from_zero_without_gaps(count, clusters, dim, seed) -> None:
    """Points on a coarse grid: many of them are equal."""
    random = np.random.default_rng(seed)
    points = random.integers(0, 3, (count, dim)).astype(np.float32)
    labels = spectral(points, num_clusters=clusters, seed=0)
    assert labels.shape == (count,) and labels.dtype == np.int64
    assert sorted(set(labels.tolist())) == list(range(labels.max() + 1))


@pytest.mark.parametrize("clusters", [1, 2, 3, 4, 50])
@pytest.mark.parametrize("count", [1, 2, 3, 4, 5])
def test_there_are_never_more_clusters_than_asked_for(count: int, clusters: int) -> None:
    points = np.random.default_rng(0).standard_normal((count, 2)).astype(np.float32)
    labels = spectral(points, num_clusters=clusters, seed=0)
    assert labels.max() + 1 <= min(count, clusters)


def test_equal_questions_share_a_cluster() -> None:
    points = np.repeat(np.eye(3, dtype=np.float32), 4, axis=0)
    labels = spectral(points, num_clusters=12, seed=0)
    assert all(len(set(labels[i : i + 4].tolist())) == 1 for i in (0, 4, 8))


def test_clustering_again_gives_the_same_labels() -> None:
    points, _ = groups([15, 15, 15], seed=4)
    one, other = (spectral(points, num_clusters=6, seed=1) for _ in range(2))
    assert (one == other).all()


@given(st.integers(1, 20), st.integers(1, 10), st.integers(1, 6), st.integers(0, 100))
@settings(deadline=None)
def test_the_nearest_centroid_is_that_of_a_naive_search(count, clusters, dim, seed) -> None:
    random = np.random.default_rng(seed)
    points = random.standard_normal((count, dim)).astype(np.float32)
    centroids = random.standard_normal((clusters, dim)).astype(np.float32)
    far = np.linalg.norm(points[:, None] - centroids[None], axis=2)
    chosen = nearest_centroid(points, centroids)
    np.testing.assert_allclose(far[range(count), chosen], far.min(1), atol=1e-5)


def test_as_many_questions_as_dimensions_are_no_affinity() -> None:
    vectors = np.random.default_rng(0).standard_normal((32, 32)).astype(np.float32)
    vectors[:16] += 20
    labels = spectral(vectors, num_clusters=2, seed=0)
    assert len(set(labels[:16])) == len(set(labels[16:])) == 1
    assert labels[0] != labels[-1]
