"""The nearest of very many centroids, looked for in the neighbouring cells of the space only.

A scan over all of them costs vectors times centroids. Here centroids are put into the square root
of their number of cells, and a vector is compared with those in the cells nearest to its own: an
inverted file index (Sivic and Zisserman, 2003) whose lists are searched for a whole cell at once.
"""

import numpy as np

from centroidkv.routing.clustering.nearest import Labels, nearest_centroid
from centroidkv.types import FloatArray

__all__ = ["nearest_by_cells"]

# Up to so many distances all are computed, and the result is exact.
SCAN_LIMIT = 2_000_000_000
PROBES = 32


def nearest_by_cells(
    vectors: FloatArray, centroids: FloatArray, *, seed: int = 0, scan_limit: int = SCAN_LIMIT
) -> Labels:
    """Return each vector's nearest centroid; [n, d] and [k, d] to [n].

    Above `scan_limit` distances the nearest is found for about 99 of 100 vectors, and one nearly
    as near for the others.
    """
    if len(vectors) * len(centroids) <= scan_limit:
        return nearest_centroid(vectors, centroids)
    chance = np.random.default_rng(seed)
    number = max(1, round(len(centroids) ** 0.5))
    middles = _middles(centroids[np.sort(chance.permutation(len(centroids))[: 64 * number])],
                       number, seed)  # fmt: skip
    homes = nearest_centroid(centroids, middles)
    around = _nearest_cells(middles)
    cells = nearest_centroid(vectors, middles)
    order = cells.argsort(kind="stable")
    borders = np.searchsorted(cells[order], np.arange(number + 1))
    held = homes.argsort(kind="stable")
    starts = np.searchsorted(homes[held], np.arange(number + 1))
    nearest = np.empty(len(vectors), np.int64)
    for cell in range(number):
        rows = order[borders[cell] : borders[cell + 1]]
        if len(rows):
            near = np.concatenate([held[starts[c] : starts[c + 1]] for c in around[cell]])
            nearest[rows] = near[nearest_centroid(vectors[rows], centroids[near])]
    return nearest


def _middles(sample: FloatArray, number: int, seed: int) -> FloatArray:
    from sklearn.cluster import KMeans

    method = KMeans(number, n_init=1, max_iter=10, random_state=seed).fit(sample)
    return np.asarray(method.cluster_centers_, np.float32)


def _nearest_cells(middles: FloatArray) -> Labels:
    """Return for each cell the cells nearest to it, itself first, [cells, probes]."""
    lengths = (middles**2).sum(1)
    squared = lengths - 2 * (middles @ middles.T)
    nearest: Labels = squared.argsort(axis=1, kind="stable")[:, :PROBES]
    return nearest
