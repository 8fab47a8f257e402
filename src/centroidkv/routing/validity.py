"""How good a number of clusters is, told from the data alone, without labels.

Vectors are halved at random, several times over. Each half is clustered, by Ward's hierarchy cut at
that number. Two things are asked: how well are the clusters of one half apart on the other, and do
the two halves agree on all vectors? Scores of the very vectors that were clustered would grow with
the number; vectors that had no part in it tell when a cluster is an accident.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from centroidkv.routing.clustering import Labels, means, nearest_centroid
from centroidkv.routing.clustering.ward_tree import cut, ward_tree
from centroidkv.types import FloatArray

__all__ = ["Score", "Validity"]

NUM_SPLITS = 4


@dataclass(frozen=True, slots=True)
class Score:
    """What one pair of dimension and number was worth."""

    pca_dim: int
    num_clusters: int
    silhouette: float
    stability: float

    @property
    def value(self) -> float:
        return max(self.silhouette, 0.0) * max(self.stability, 0.0)


@dataclass(frozen=True, slots=True)
class _Half:
    rows: NDArray[np.int64]
    tree: Any


class Validity:
    """Scores numbers of clusters on one reduction of one set of vectors, at least four."""

    def __init__(
        self, reduced: FloatArray, *, dim: int, seed: int, space: FloatArray | None = None
    ) -> None:
        """Halve the vectors and grow the halves' trees.

        Args:
            reduced: [n, reduced].
            dim: What the scores name.
            seed: Of the halving.
            space: Where silhouettes are measured, [n, any]; the reduced one if not given. To
                compare reductions it must be one and the same.
        """
        self._reduced = reduced
        self._space = reduced if space is None else space
        self._dim = dim
        random = np.random.default_rng(seed)
        self._splits: list[list[_Half]] = []
        for _ in range(NUM_SPLITS):
            halves = [np.sort(h) for h in np.array_split(random.permutation(len(reduced)), 2)]
            self._splits.append([_Half(h, ward_tree(reduced[h])) for h in halves])

    def score(self, num_clusters: int) -> Score:
        """Return the mean over all splits, either half once the learner and once the judge."""
        apart: list[float] = []
        agreement: list[float] = []
        for split in self._splits:
            whole = [self._clustered(half, num_clusters) for half in split]
            agreement.append(_agreement(*whole))
            judged = zip(split, reversed(split), whole, strict=True)
            apart += [self._apart(learner, judge, labels) for learner, judge, labels in judged]
        return Score(self._dim, num_clusters, float(np.mean(apart)), float(np.mean(agreement)))

    def _clustered(self, half: _Half, num_clusters: int) -> Labels:
        """Cluster a half and give every vector of both to its nearest centroid."""
        own = self._reduced[half.rows]
        labels = nearest_centroid(own, means(own, cut(half.tree, num_clusters)))
        labels = np.unique(labels, return_inverse=True)[1].reshape(-1)
        return nearest_centroid(self._reduced, means(own, labels))

    def _apart(self, learner: _Half, judge: _Half, labels: Labels) -> float:
        known = np.unique(labels[learner.rows], return_inverse=True)[1].reshape(-1)
        return _silhouette(self._space[judge.rows], means(self._space[learner.rows], known))


def _silhouette(vectors: FloatArray, centroids: FloatArray) -> float:
    """Return the simplified silhouette: how much farther the second centroid is than the first."""
    if len(centroids) < 2:
        return 0.0
    squared = (vectors**2).sum(1)[:, None] - 2 * vectors @ centroids.T + (centroids**2).sum(1)
    nearest = np.sqrt(np.maximum(np.partition(squared, 1, axis=1)[:, :2], 0.0))
    return float(((nearest[:, 1] - nearest[:, 0]) / np.maximum(nearest[:, 1], 1e-12)).mean())


def _agreement(one: Labels, other: Labels) -> float:
    """Return the mean of adjusted mutual information and adjusted Rand index.

    The first leans towards many clusters, the second towards few.
    """
    from sklearn.metrics import adjusted_mutual_info_score, adjusted_rand_score

    if max(one.max(), other.max()) == 0:
        return 0.0  # a single cluster on both sides agrees with itself and tells nothing
    scores: Sequence[float] = (
        adjusted_mutual_info_score(one, other),
        adjusted_rand_score(one, other),
    )
    return float(np.mean(scores))
