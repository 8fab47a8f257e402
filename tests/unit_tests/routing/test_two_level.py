"""Thousands of clusters, and the nearest of many centroids, without comparing all with all."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from centroidkv.routing.clustering import cluster, means, nearest_centroid
from centroidkv.routing.clustering.cells import nearest_by_cells
from centroidkv.routing.clustering.kmeans import FULL_LIMIT, kmeans
from centroidkv.routing.clustering.two_level import two_level_kmeans


def clumps(count: int, *, number: int = 60, dim: int = 8, seed: int = 0) -> np.ndarray:
    """Vectors around directions that differ in how many have them, as questions do."""
    random = np.random.default_rng(seed)
    centres = random.standard_normal((number, dim)) * 3
    sizes = random.dirichlet(np.ones(number))
    chosen = random.choice(number, count, p=sizes)
    return (centres[chosen] + random.standard_normal((count, dim))).astype(np.float32)


def spread(vectors: np.ndarray, labels: np.ndarray) -> float:
    centroids = means(vectors, labels)
    return float(((vectors - centroids[labels]) ** 2).sum(1).mean())


@given(st.integers(2, 300), st.integers(1, 60), st.integers(0, 5))
@settings(max_examples=25, deadline=None)
def test_labels_have_no_gaps_and_there_are_at_most_as_many_as_asked(count, number, seed) -> None:
    random = np.random.default_rng(seed)
    vectors = random.integers(0, 4, (count, 3)).astype(np.float32)  # many of them equal
    number = min(number, len(np.unique(vectors, axis=0)))
    labels = two_level_kmeans(vectors, num_clusters=number, seed=0)
    assert labels.shape == (count,)
    assert sorted(set(labels.tolist())) == list(range(labels.max() + 1))
    assert labels.max() < number


def test_two_levels_are_about_as_tight_as_one() -> None:
    vectors = clumps(4000)
    one = spread(vectors, kmeans(vectors, num_clusters=400, seed=0))
    two = spread(vectors, two_level_kmeans(vectors, num_clusters=400, seed=0))
    assert two <= 1.05 * one


def test_the_same_seed_gives_the_same_labels() -> None:
    vectors = clumps(3000)
    first, again = (two_level_kmeans(vectors, num_clusters=300, seed=1) for _ in range(2))
    assert (first == again).all()


@pytest.mark.parametrize("method", ["spectral", "kmeans"])
def test_many_clusters_of_many_vectors_are_made(method: str) -> None:
    vectors = clumps(FULL_LIMIT + 1000)
    labels = cluster(vectors, method=method, num_clusters=600, seed=0)
    assert 580 <= labels.max() + 1 <= 600
    assert spread(vectors, labels) < 0.5 * spread(vectors, np.zeros(len(vectors), np.int64))


def test_cells_find_the_nearest_centroid_of_nearly_every_vector() -> None:
    vectors = clumps(6000)
    centroids = clumps(2000, seed=1)
    exact = nearest_centroid(vectors, centroids)
    found = nearest_by_cells(vectors, centroids, seed=0, scan_limit=0)
    assert (found == exact).mean() >= 0.99
    far, least = (np.linalg.norm(vectors - centroids[n], axis=1) for n in (found, exact))
    assert (far <= 1.5 * least + 1e-6).all(), "what is not nearest is nearly so"


def test_few_vectors_are_compared_with_every_centroid() -> None:
    vectors, centroids = clumps(200), clumps(100, seed=2)
    exact = nearest_centroid(vectors, centroids)
    assert (nearest_by_cells(vectors, centroids, seed=0) == exact).all()


def test_means_of_more_clusters_than_are_copied_at_once() -> None:
    vectors = clumps(9000)
    labels = np.random.default_rng(0).permutation(np.arange(9000) % 4500)
    found = means(vectors, labels)
    for number in (0, 1, 4095, 4096, 4499):
        expected = vectors[labels == number].mean(0)
        np.testing.assert_allclose(found[number], expected, atol=1e-5)
