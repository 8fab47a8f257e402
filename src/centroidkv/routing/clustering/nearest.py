"""Assignment to the nearest centroid, and labels as every method returns them."""

from typing import Any

import numpy as np
from numpy.typing import NDArray

from centroidkv.types import FloatArray

__all__ = ["Labels", "means", "nearest_centroid", "without_gaps"]

Labels = NDArray[np.int64]

_CHUNK_ENTRIES = 1 << 22  # distances held at once: 16 MiB in float32


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
    starts = np.searchsorted(labels[order], np.arange(int(labels.max()) + 1))
    sums = np.add.reduceat(vectors[order], starts, axis=0, dtype=np.float64)
    counts = np.bincount(labels)[:, None]
    return np.asarray(sums / counts, np.float32)


def without_gaps(labels: NDArray[Any]) -> Labels:
    """Number labels from 0 in their order."""
    numbered = np.unique(labels, return_inverse=True)[1]
    return np.asarray(numbered, np.int64).reshape(-1)
