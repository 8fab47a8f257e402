"""The number of clusters and the dimension, chosen from the data."""

import logging

import numpy as np
import pytest

from centroidkv.errors import ConfigError
from centroidkv.plan_config import PlanConfig
from centroidkv.routing.selection import DIMS, choose_shape, default_clusters

AUTO = PlanConfig(num_clusters="auto", pca_dim="auto", auto_budget_s=1e6)


def blobs(num: int, each: int, *, dim: int = 24, seed: int = 0) -> np.ndarray:
    random = np.random.default_rng(seed)
    centres = random.standard_normal((num, dim))
    points = np.repeat(centres, each, axis=0)
    points += 0.2 * random.standard_normal(points.shape)
    return (points / np.linalg.norm(points, axis=1, keepdims=True)).astype(np.float32)


@pytest.mark.parametrize("num", [3, 6, 12])
def test_the_number_of_separate_groups_is_found(num: int) -> None:
    config = PlanConfig(num_clusters="auto", pca_dim=16, auto_budget_s=1e6)
    chosen = choose_shape(blobs(num, 16), config)
    assert chosen.is_complete and chosen.pca_dim == 16
    # The grid goes in steps of a fifth.
    assert num / 1.2 <= chosen.num_clusters <= num * 1.2


def test_the_same_questions_give_the_same_choice() -> None:
    points = blobs(5, 20)
    assert choose_shape(points, AUTO) == choose_shape(points, AUTO)


def test_what_is_given_is_kept() -> None:
    points = blobs(5, 20)
    assert choose_shape(points, PlanConfig(num_clusters=7, pca_dim=9)).num_clusters == 7
    assert choose_shape(points, PlanConfig()).num_clusters == default_clusters(100) == 10
    chosen = choose_shape(points, PlanConfig(num_clusters=7, pca_dim="auto"))
    assert chosen.num_clusters == 7 and chosen.pca_dim in DIMS


@pytest.mark.parametrize("count", [1, 2, 19, 20, 25])
def test_few_questions_are_enough(count: int) -> None:
    chosen = choose_shape(blobs(1, count), AUTO)
    assert 1 <= chosen.num_clusters <= count


def test_equal_questions_are_no_trouble() -> None:
    chosen = choose_shape(np.ones((40, 8), np.float32), AUTO)
    assert chosen.num_clusters >= 1


def test_a_budget_that_ends_early_is_said(caplog: pytest.LogCaptureFixture) -> None:
    ticks = iter(range(0, 100_000, 50))
    with caplog.at_level(logging.WARNING):
        brief = PlanConfig(num_clusters="auto", pca_dim="auto", auto_budget_s=60)
        chosen = choose_shape(blobs(5, 40), brief, clock=lambda: next(ticks))
    assert not chosen.is_complete and len(chosen.scores) < 5
    assert "auto_budget_s" in caplog.text


@pytest.mark.parametrize("name", ["num_clusters", "pca_dim"])
@pytest.mark.parametrize("value", ["Auto", "8", 0, True])
def test_only_auto_is_a_word_for_a_number(name: str, value: object) -> None:
    with pytest.raises(ConfigError, match=name):
        PlanConfig.of({name: value})


@pytest.mark.parametrize("value", [0, -1, "60", float("nan"), None])
def test_the_budget_is_a_number_of_seconds(value: object) -> None:
    with pytest.raises(ConfigError, match="auto_budget_s"):
        PlanConfig.of({"auto_budget_s": value})
