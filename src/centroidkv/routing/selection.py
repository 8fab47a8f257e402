"""Choice of the number of clusters and of the dimension, from the data alone.

Each pair on a grid is scored (`validity.py`). The number is settled at the first dimension, then
the dimension at that number. Knows no labels and no plan.
"""

import logging
import math
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from centroidkv.plan_config import Clustering, PlanConfig
from centroidkv.routing.projection import fit_projection
from centroidkv.routing.validity import Score, Validity
from centroidkv.types import FloatArray

__all__ = ["Choice", "Score", "choose_shape", "default_clusters"]

QUESTIONS_PER_CLUSTER = 10
DIMS = (32, 16, 64)
GRID_STEP = 1.08
LEAST_MEMBERS = 8  # the mean size of a cluster at the end of the grid
MOST_CLUSTERS = 256
SAMPLE = 2000
FEWEST_QUESTIONS = 20
PLATEAU = 0.9  # of the best value
# A weak preference for the rule of thumb, the root of half the questions (Mardia et al. 1979): a
# number that is seven times away from it counts 0.6. It keeps two or three big topics, which all
# halves agree on, from being taken for the intents.
RULE_WIDTH = 2.0

_log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Choice:
    """The chosen pair and how to cluster with it.

    `is_complete` is false when the budget ended before the grid did.
    """

    pca_dim: int
    num_clusters: int
    clustering: Clustering
    scores: tuple[Score, ...] = ()
    is_complete: bool = True


def default_clusters(count: int) -> int:
    """Return one cluster for about ten questions."""
    return max(1, round(count / QUESTIONS_PER_CLUSTER))


def choose_shape(
    vectors: FloatArray, config: PlanConfig, *, clock: Callable[[], float] = time.monotonic
) -> Choice:
    """Settle `num_clusters`, `pca_dim` and the method for vectors, shape [n, dim].

    What is not `auto` is taken as given, but that a number chosen here is clustered by consensus
    rather than spectrally. Of more than a few thousand vectors a sample is scored. The budget is
    looked at between pairs of the grid, coarse pairs first: the same data gives the same choice
    whenever the grid was completed.
    """
    count = len(vectors)
    dim = 32 if config.pca_dim == "auto" else config.pca_dim
    is_auto = config.num_clusters == "auto"
    fixed = None if config.num_clusters == "auto" else config.num_clusters
    given = fixed or default_clusters(count)
    if count < FEWEST_QUESTIONS or not (is_auto or config.pca_dim == "auto"):
        return Choice(dim, given, config.clustering)
    sample, end = _sample(vectors, config.seed), clock() + config.auto_budget_s
    number, scores, is_complete = given, [], True
    if is_auto:
        grid = _grid(len(sample))
        scores = _numbers(sample, config, dim, grid, lambda: clock() > end)
        number, is_complete = _best_number(scores, len(vectors)), len(scores) == len(grid)
    if config.pca_dim == "auto":
        compared = _dimensions(sample, config, number, lambda: clock() > end)
        dim = max(compared, key=lambda s: s.value).pca_dim if compared else dim
        scores, is_complete = [*scores, *compared], is_complete and len(compared) == len(DIMS)
    if not is_complete:
        _log.warning(
            "the choice of num_clusters and pca_dim ended after %g s with part of the grid "
            "compared; a larger auto_budget_s compares all of it",
            config.auto_budget_s,
        )
    by_consensus = is_auto and config.clustering == "spectral"
    method: Clustering = "consensus" if by_consensus else config.clustering
    return Choice(dim, number, method, tuple(scores), is_complete)


def _numbers(
    sample: FloatArray,
    config: PlanConfig,
    dim: int,
    grid: Sequence[int],
    is_over: Callable[[], bool],
) -> list[Score]:
    """Score the numbers of the grid, at least one."""
    validity = Validity(_reduced(sample, config, dim), dim=dim, seed=config.seed)
    scores: list[Score] = []
    for number in _coarse_first(grid):
        scores.append(validity.score(number))
        if is_over():
            break
    return scores


def _dimensions(
    sample: FloatArray, config: PlanConfig, number: int, is_over: Callable[[], bool]
) -> list[Score]:
    """Score the dimensions at one number, silhouettes in the full space."""
    compared: list[Score] = []
    for dim in DIMS:
        if is_over():
            break
        reduced = _reduced(sample, config, dim)
        validity = Validity(reduced, dim=dim, seed=config.seed, space=sample)
        # A sample that is smaller than what was asked for is cut as finely as it bears.
        compared.append(validity.score(max(2, min(number, len(sample) // LEAST_MEMBERS))))
    return compared


def _reduced(sample: FloatArray, config: PlanConfig, dim: int) -> FloatArray:
    return fit_projection(sample, dim=dim, seed=config.seed).transform(sample)


def _best_number(scores: Sequence[Score], count: int) -> int:
    """Return the middle of the numbers that are nearly as good as the best.

    The curve is flat and noisy at its top: its very maximum jumps between neighbouring numbers,
    and would take 7 or 18 clusters for some ten intents.
    """
    rule = math.log(max(2.0, math.sqrt(count / 2)))
    values = {
        s.num_clusters: s.value
        * math.exp(-((math.log(s.num_clusters) - rule) ** 2) / (2 * RULE_WIDTH**2))
        for s in scores
    }
    best = max(values.values())
    middle = float(np.log([k for k, v in values.items() if v >= PLATEAU * best]).mean())
    return min(values, key=lambda number: (abs(math.log(number) - middle), number))


def _grid(count: int) -> list[int]:
    """Return numbers of clusters from 2, each about a twelfth above the last."""
    last = max(2, min(MOST_CLUSTERS, count // LEAST_MEMBERS))
    steps = math.ceil(math.log(last / 2) / math.log(GRID_STEP))
    return sorted({min(last, round(2 * GRID_STEP**i)) for i in range(steps + 1)})


def _coarse_first(clusters: Sequence[int]) -> Iterator[int]:
    """Yield every fourth, then what lies between, so that a short budget still spans the grid."""
    yield from clusters[::4]
    yield from clusters[2::4]
    yield from clusters[1::2]


def _sample(vectors: FloatArray, seed: int) -> FloatArray:
    if len(vectors) <= SAMPLE:
        return vectors
    chosen = np.random.default_rng(seed).choice(len(vectors), SAMPLE, replace=False)
    return vectors[np.sort(chosen)]
