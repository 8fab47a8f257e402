"""Assignment to the nearest centroid, and labels as every method returns them."""

from typing import Any

import numpy as np
from numpy.typing import NDArray

from centroidkv.types import FloatArray

__all__ = ["Labels", "means", "nearest_centroid", "without_gaps"]

Labels = NDArray[np.int64]

_CHUNK_ENTRIES = 1 << 22  # distances held at once: 16 MiB in float32
_CHUNK_CLUSTERS = 4096  # whose members are copied at once


def nearest_centroid(vectors: FloatArray, centroids: FloatArray) -> Labels:
    """Return each vector's nearest centroid by Euclidean distance; [n, d] and [k, d] to [n]."""
    lengths = (centroids**2).sum(1)
    step = max(1, _CHUNK_ENTRIES // max(1, len(centroids)))
    nearest = np.empty(len(vectors), np.int64)
    for start in range(0, len(vectors), step):
        squared = lengths - 2 * (vectors[start : start + step] @ centroids.T)
        nearest[start : start + step] = squared.argmin(1)
    return nearest


def means(vectors: FloatArray, labels: Labels) -> FloatArray:
    """Return the mean of each cluster, shape [k, d]; labels must have no gaps."""
    order = labels.argsort(kind="stable")
    counts = np.bincount(labels)
    starts = np.concatenate([[0], counts.cumsum()])
    found = np.empty((len(counts), vectors.shape[1]), np.float32)
    for first in range(0, len(counts), _CHUNK_CLUSTERS):
        last = min(len(counts), first + _CHUNK_CLUSTERS)
        rows = order[starts[first] : starts[last]]
        sums = np.add.reduceat(
            vectors[rows], starts[first:last] - starts[first], axis=0, dtype=np.float64
        )
        found[first:last] = sums / counts[first:last, None]
    return found


def without_gaps(labels: NDArray[Any]) -> Labels:
    """Number labels from 0 in their order."""
    numbered = np.unique(labels, return_inverse=True)[1]
    return np.asarray(numbered, np.int64).reshape(-1)
