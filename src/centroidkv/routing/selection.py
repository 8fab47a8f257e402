"""Choice of the number of clusters and of the dimension, from the data alone.

Each pair on a grid is scored by silhouette (cosine) times stability: the agreement, by adjusted
mutual information, of clusterings of two disjoint halves. Silhouette alone is fooled by coarse
splits, stability alone by two or three big topics. Knows no labels and no plan.
"""

import logging
import math
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from centroidkv.config import PlanConfig
from centroidkv.routing.clustering import Labels, cluster, means, nearest_centroid
from centroidkv.routing.projection import fit_projection
from centroidkv.types import FloatArray

__all__ = ["Choice", "Score", "choose_shape", "default_clusters"]

QUESTIONS_PER_CLUSTER = 10
DIMS = (32, 16, 64)
GRID_STEP = 1.2
LEAST_MEMBERS = 8  # the mean size of a cluster at the end of the grid
MOST_CLUSTERS = 256
SAMPLE = 2000
NUM_SPLITS = 3
FEWEST_QUESTIONS = 20
PLATEAU = 0.93  # of the best value

_log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Score:
    """What one pair on the grid was worth."""

    pca_dim: int
    num_clusters: int
    silhouette: float
    stability: float

    @property
    def value(self) -> float:
        return max(self.silhouette, 0.0) * max(self.stability, 0.0)


@dataclass(frozen=True, slots=True)
class Choice:
    """The chosen pair; `is_complete` is false when the budget ended before the grid did."""

    pca_dim: int
    num_clusters: int
    scores: tuple[Score, ...] = ()
    is_complete: bool = True


def default_clusters(count: int) -> int:
    """Return one cluster for about ten questions."""
    return max(1, round(count / QUESTIONS_PER_CLUSTER))


def choose_shape(
    vectors: FloatArray, config: PlanConfig, *, clock: Callable[[], float] = time.monotonic
) -> Choice:
    """Settle `num_clusters` and `pca_dim` for vectors, shape [n, dim].

    What is not `auto` is taken as given. Of more than a few thousand vectors a sample is scored.
    The budget is looked at between pairs of the grid, coarse pairs first: the same data gives the
    same choice whenever the grid was completed.
    """
    count = len(vectors)
    dim = 32 if config.pca_dim == "auto" else config.pca_dim
    fixed = None if config.num_clusters == "auto" else config.num_clusters
    if config.num_clusters != "auto":
        fixed = fixed or default_clusters(count)
        if config.pca_dim != "auto":
            return Choice(dim, fixed)
    if count < FEWEST_QUESTIONS:
        return Choice(dim, fixed or default_clusters(count))
    dims = DIMS if config.pca_dim == "auto" else (dim,)
    clusters = [fixed] if fixed else _grid(min(count, SAMPLE))
    return _search(_sample(vectors, config.seed), config, dims, clusters, clock)


def _search(
    vectors: FloatArray,
    config: PlanConfig,
    dims: Sequence[int],
    clusters: Sequence[int],
    clock: Callable[[], float],
) -> Choice:
    """Settle the number at the first dimension, then the dimension at that number."""
    end = clock() + config.auto_budget_s
    scores: list[Score] = []
    for number in _coarse_first(clusters) if len(clusters) > 1 else ():
        scores.append(_score(vectors, config, dims[0], number))
        if clock() > end:
            break
    number = _best_number(scores) if scores else min(clusters[0], len(vectors) // LEAST_MEMBERS)
    compared: list[Score] = []
    for dim in dims if len(dims) > 1 else ():
        if clock() > end:
            break
        compared.append(_score(vectors, config, dim, max(2, number), in_full=vectors))
    dim = max(compared, key=lambda s: s.value).pca_dim if compared else dims[0]
    is_complete = (
        len(scores) == (len(clusters) if len(clusters) > 1 else 0)
        and len(compared) == (len(dims) if len(dims) > 1 else 0)
    )  # fmt: skip
    if not is_complete:
        _log.warning(
            "the choice of num_clusters and pca_dim ended after %g s with part of the grid "
            "compared; a larger auto_budget_s compares all of it",
            config.auto_budget_s,
        )
    chosen = number if len(clusters) > 1 else clusters[0]
    return Choice(dim, chosen, (*scores, *compared), is_complete)


def _score(
    vectors: FloatArray,
    config: PlanConfig,
    dim: int,
    number: int,
    *,
    in_full: FloatArray | None = None,
) -> Score:
    """Score one pair; `in_full` are the vectors to take the silhouette in, if not the reduced."""
    reduced = fit_projection(vectors, dim=dim, seed=config.seed).transform(vectors)
    labels, _ = _fitted(reduced, config, number)
    space = reduced if in_full is None else in_full
    return Score(dim, number, _silhouette(space, labels), _stability(reduced, config, number))


def _fitted(reduced: FloatArray, config: PlanConfig, number: int) -> tuple[Labels, FloatArray]:
    """Cluster and reassign to the nearest centroid, as a plan is fitted."""
    labels = cluster(reduced, method=config.clustering, num_clusters=number, seed=config.seed)
    centroids = means(reduced, labels)
    return nearest_centroid(reduced, centroids), centroids


def _silhouette(space: FloatArray, labels: Labels) -> float:
    from sklearn.metrics import silhouette_score

    if not 2 <= len(np.unique(labels)) < len(labels):
        return 0.0
    return float(silhouette_score(space, labels, metric="cosine"))


def _stability(reduced: FloatArray, config: PlanConfig, number: int) -> float:
    """Return how well clusterings of disjoint halves agree on all vectors."""
    from sklearn.metrics import adjusted_mutual_info_score

    random = np.random.default_rng(config.seed)
    agreements = []
    for _ in range(NUM_SPLITS):
        order = random.permutation(len(reduced))
        halves = np.array_split(order, 2)
        one, other = (
            nearest_centroid(reduced, _fitted(reduced[np.sort(h)], config, number)[1])
            for h in halves
        )
        agreements.append(adjusted_mutual_info_score(one, other))
    return float(np.mean(agreements))


def _best_number(scores: Sequence[Score]) -> int:
    """Return the middle of the numbers that are nearly as good as the best.

    The curve is flat and noisy at its top: its very maximum jumps between neighbouring numbers,
    and would take 7 or 18 clusters for some ten intents.
    """
    best = max(s.value for s in scores)
    numbers = sorted(s.num_clusters for s in scores if s.value >= PLATEAU * best)
    middle = float(np.log(numbers).mean())
    return min(
        (s.num_clusters for s in scores),
        key=lambda number: (abs(math.log(number) - middle), number),
    )


def _grid(count: int) -> list[int]:
    """Return numbers of clusters from 2, each about a fifth above the last."""
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
