"""Numbers of clusters are scored on vectors that had no part in the clustering."""

import numpy as np

from centroidkv.plan_config import PlanConfig
from centroidkv.routing.selection import choose_shape
from centroidkv.routing.validity import Validity


def blobs(num: int, each: int, *, spread: float = 0.15, seed: int = 0) -> np.ndarray:
    random = np.random.default_rng(seed)
    points = np.repeat(random.standard_normal((num, 12)), each, axis=0)
    return (points + spread * random.standard_normal(points.shape)).astype(np.float32)


def test_the_true_number_scores_best() -> None:
    validity = Validity(blobs(6, 30), dim=12, seed=0)
    scores = {k: validity.score(k) for k in (2, 4, 6, 9, 14)}
    assert max(scores, key=lambda k: scores[k].value) == 6
    assert scores[6].stability > 0.98 and scores[6].silhouette > 0.5


def test_noise_is_worth_little_at_any_number() -> None:
    noise = np.random.default_rng(0).standard_normal((180, 12)).astype(np.float32)
    validity = Validity(noise, dim=12, seed=0)
    assert max(validity.score(k).value for k in (2, 6, 14)) < 0.05


def test_a_single_cluster_and_equal_vectors_are_worth_nothing() -> None:
    assert Validity(blobs(3, 10), dim=12, seed=0).score(1).value == 0
    assert Validity(np.ones((12, 4), np.float32), dim=4, seed=0).score(3).value == 0


def test_silhouettes_are_measured_in_the_space_given() -> None:
    points = blobs(5, 20)
    wide = np.concatenate([points, 5 * np.random.default_rng(1).standard_normal((100, 30))], axis=1)
    own = Validity(points, dim=12, seed=0).score(5)
    other = Validity(points, dim=12, seed=0, space=wide.astype(np.float32)).score(5)
    assert other.stability == own.stability and other.silhouette < own.silhouette / 2


def test_two_big_topics_are_not_taken_for_the_intents_in_them() -> None:
    """Two topics far apart, ten intents in each: all halves agree on two clusters best."""
    random = np.random.default_rng(3)
    topics = np.repeat(4 * random.standard_normal((2, 1, 16)), 10, axis=1)
    intents = (topics + random.standard_normal((2, 10, 16))).reshape(20, 16)
    points = np.repeat(intents, 25, axis=0) + 0.2 * random.standard_normal((500, 16))
    config = PlanConfig(num_clusters="auto", pca_dim=16, auto_budget_s=1e6)
    assert 16 <= choose_shape(points.astype(np.float32), config).num_clusters <= 25


def test_a_chosen_number_is_clustered_by_consensus_unless_a_method_is_named() -> None:
    points = blobs(4, 20)
    chosen = choose_shape(points, PlanConfig(num_clusters="auto", auto_budget_s=1e6))
    assert chosen.clustering == "consensus"
    named = PlanConfig(num_clusters="auto", clustering="kmeans", auto_budget_s=1e6)
    assert choose_shape(points, named).clustering == "kmeans"
    assert choose_shape(points, PlanConfig(num_clusters=4)).clustering == "spectral"
