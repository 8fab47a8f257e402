"""Every method of clustering behind the one function, and what happens with many vectors."""

import sys
from typing import get_args, get_type_hints

import numpy as np
import pytest

from centroidkv.errors import ConfigError
from centroidkv.plan_config import PlanConfig
from centroidkv.routing.clustering import METHODS, SAMPLE_SIZES, cluster, means, nearest_centroid
from centroidkv.routing.clustering import spectral as spectral_of
from centroidkv.routing.clustering.landmarks import landmark_spectral


def blobs(num: int, each: int, *, dim: int = 8, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    random = np.random.default_rng(seed)
    truth = np.repeat(np.arange(num), each)
    centres = random.standard_normal((num, dim)) * 20
    points = centres[truth] + random.standard_normal((num * each, dim))
    return points.astype(np.float32), truth


def is_same_partition(one: np.ndarray, other: np.ndarray) -> bool:
    pairs = set(zip(one.tolist(), other.tolist(), strict=True))
    return len(pairs) == len(set(one.tolist())) == len(set(other.tolist()))


@pytest.mark.parametrize("method", METHODS)
def test_a_method_finds_groups_far_apart(method: str) -> None:
    points, truth = blobs(5, 30)
    labels = cluster(points, method=method, num_clusters=5, seed=0)
    assert labels.dtype == np.int64 and is_same_partition(labels, truth)


@pytest.mark.parametrize("method", METHODS)
def test_clustering_again_gives_the_same_labels(method: str) -> None:
    points = np.random.default_rng(1).standard_normal((120, 6)).astype(np.float32)
    one, other = (cluster(points, method=method, num_clusters=9, seed=3) for _ in range(2))
    assert (one == other).all()


@pytest.mark.parametrize("clusters", [1, 2, 7, 60])
@pytest.mark.parametrize("count", [1, 2, 5, 40])
@pytest.mark.parametrize("method", METHODS)
def test_labels_have_no_gaps_whatever_the_questions(method: str, count: int, clusters: int) -> None:
    """Points on a coarse grid: many of them are equal."""
    points = np.random.default_rng(count).integers(0, 2, (count, 3)).astype(np.float32)
    labels = cluster(points, method=method, num_clusters=clusters, seed=0)
    assert sorted(set(labels.tolist())) == list(range(labels.max() + 1))
    if method != "hdbscan":
        assert labels.max() + 1 <= min(clusters, len(np.unique(points, axis=0)))


def test_hdbscan_finds_its_own_number_and_leaves_no_noise() -> None:
    points, truth = blobs(4, 25)
    stray = points[:1] + 3
    labels = cluster(np.concatenate([points, stray]), method="hdbscan", num_clusters=2, seed=0)
    assert is_same_partition(labels[:-1], truth) and labels[-1] == labels[0]


def test_an_unknown_method_names_the_known_ones() -> None:
    points, _ = blobs(2, 5)
    with pytest.raises(ConfigError, match="spectral, kmeans, gmm, agglomerative, hdbscan"):
        cluster(points, method="dbscan", num_clusters=2, seed=0)
    with pytest.raises(ConfigError, match="spectral, kmeans, gmm, agglomerative, hdbscan"):
        PlanConfig.of({"clustering": "dbscan"})


def test_the_settings_know_the_methods() -> None:
    assert get_args(get_type_hints(PlanConfig)["clustering"]) == tuple(METHODS)
    assert all(PlanConfig.of({"clustering": m}).clustering == m for m in METHODS)


@pytest.mark.parametrize("wrong", [np.nan, np.inf])
def test_vectors_that_are_not_finite_are_an_error(wrong: float) -> None:
    points, _ = blobs(2, 5)
    points[3, 1] = wrong
    with pytest.raises(ConfigError, match="embedder"):
        cluster(points, num_clusters=2, seed=0)


def test_landmarks_agree_with_the_whole_graph_on_groups_far_apart() -> None:
    points, truth = blobs(6, 150)
    exact = spectral_of(points, num_clusters=6, seed=0)
    near = landmark_spectral(points, num_clusters=6, seed=0)
    assert is_same_partition(exact, truth) and is_same_partition(near, exact)


def test_landmarks_follow_shapes_that_k_means_tears() -> None:
    angle = np.linspace(0, 2 * np.pi, 800, endpoint=False)
    ring = np.stack([np.cos(angle), np.sin(angle)], 1)
    points = np.concatenate([ring, 4 * ring]).astype(np.float32)
    labels = landmark_spectral(points, num_clusters=2, seed=0)
    assert is_same_partition(labels, np.repeat([0, 1], 800))


@pytest.mark.parametrize("method", METHODS)
def test_many_vectors_are_clustered(method: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Above the limits of the exact methods."""
    monkeypatch.setattr(sys.modules["centroidkv.routing.clustering.kmeans"], "FULL_LIMIT", 300)
    monkeypatch.setattr(sys.modules["centroidkv.routing.clustering.spectral"], "EXACT_LIMIT", 300)
    for name in SAMPLE_SIZES:
        monkeypatch.setitem(SAMPLE_SIZES, name, 300)
    points, truth = blobs(4, 150, seed=2)
    one, other = (cluster(points, method=method, num_clusters=4, seed=0) for _ in range(2))
    assert (one == other).all() and is_same_partition(one, truth)


def test_more_clusters_than_landmarks_carry_are_found_all_the_same() -> None:
    points, _ = blobs(40, 10)
    labels = landmark_spectral(points, num_clusters=300, seed=0)
    assert 200 < labels.max() + 1 <= 300


def test_the_mean_of_a_cluster_is_that_of_its_members() -> None:
    points, truth = blobs(3, 7)
    found = means(points, truth)
    np.testing.assert_allclose(found, [points[truth == j].mean(0) for j in range(3)], rtol=1e-5)


def test_the_nearest_centroid_is_found_chunk_by_chunk(monkeypatch: pytest.MonkeyPatch) -> None:
    points, _ = blobs(5, 20)
    whole = nearest_centroid(points, points[::20])
    monkeypatch.setattr("centroidkv.routing.clustering.nearest._CHUNK_ENTRIES", 16)
    assert (nearest_centroid(points, points[::20]) == whole).all()


def test_consensus_does_not_count_outliers_as_clusters() -> None:
    points, truth = blobs(5, 30)
    strays = np.eye(3, points.shape[1], dtype=np.float32) * 200
    labels = cluster(np.concatenate([points, strays]), method="consensus", num_clusters=5, seed=0)
    assert is_same_partition(labels[:-3], truth)
    assert labels.max() == 4
