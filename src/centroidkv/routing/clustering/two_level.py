"""k-means for thousands of clusters: cells first, then clusters within each cell.

One level costs vectors times clusters, which is the square of the questions where a tenth of them
become clusters. Two levels cost vectors times the square root of the clusters. What lies at a
border between cells is set right by one step over the neighbouring cells.
"""

import warnings

import numpy as np
from numpy.typing import NDArray

from centroidkv.routing.clustering.cells import nearest_by_cells
from centroidkv.routing.clustering.nearest import Labels, means, without_gaps
from centroidkv.types import FloatArray

__all__ = ["two_level_kmeans"]

SAMPLE_PER_CELL = 256
ITERATIONS = 20


def two_level_kmeans(vectors: FloatArray, *, num_clusters: int, seed: int) -> Labels:
    """Label vectors, shape [n, reduced]; `num_clusters` is at most the distinct vectors."""
    num_cells = max(1, round(num_clusters**0.5))
    cells = _cells(vectors, num_cells, seed)
    order = cells.argsort(kind="stable")
    groups = np.split(order, np.cumsum(np.bincount(cells))[:-1])
    labels = np.empty(len(vectors), np.int64)
    first = 0
    for group, number in zip(groups, _shares([len(g) for g in groups], num_clusters), strict=True):
        labels[group] = first + _within(vectors[group], int(number), seed)
        first += int(number)
    labels = without_gaps(labels)
    return without_gaps(nearest_by_cells(vectors, means(vectors, labels), seed=seed))


def _cells(vectors: FloatArray, number: int, seed: int) -> Labels:
    """Cut the space by k-means on a sample, which is as good for cells that are only a means."""
    from sklearn.cluster import KMeans

    size = min(len(vectors), SAMPLE_PER_CELL * number)
    chosen = np.random.default_rng(seed).choice(len(vectors), size, replace=False)
    method = KMeans(number, n_init=1, max_iter=ITERATIONS, random_state=seed)
    with _equal_vectors_are_expected():
        method.fit(vectors[np.sort(chosen)])
    return without_gaps(method.predict(vectors))


def _within(vectors: FloatArray, number: int, seed: int) -> Labels:
    from sklearn.cluster import KMeans

    if number >= len(vectors):
        return np.arange(len(vectors))
    if number == 1:
        return np.zeros(len(vectors), np.int64)
    method = KMeans(number, n_init=1, max_iter=ITERATIONS, random_state=seed)
    with _equal_vectors_are_expected():
        return np.asarray(method.fit_predict(vectors), np.int64)


def _shares(sizes: list[int], total: int) -> NDArray[np.int64]:
    """Divide `total` clusters among cells by their members: at least one, at most one for each."""
    members = np.array(sizes, np.float64)
    exact = members * total / members.sum()
    shares = np.clip(np.floor(exact), 1, members)
    # What is left goes to the largest remainders, one each.
    left = int(total - shares.sum())
    if left > 0:
        open_cells = np.flatnonzero(shares < members)
        best = open_cells[np.argsort(-(exact - shares)[open_cells], kind="stable")]
        shares[best[:left]] += 1
    return np.asarray(shares, np.int64)


def _equal_vectors_are_expected() -> warnings.catch_warnings:
    """Silence what scikit-learn says where equal vectors leave fewer clusters than asked for."""
    from sklearn.exceptions import ConvergenceWarning

    return warnings.catch_warnings(action="ignore", category=ConvergenceWarning)
