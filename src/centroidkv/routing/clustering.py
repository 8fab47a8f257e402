"""Clustering of past questions in the reduced space (source paper, section 3.1, step 3)."""

import warnings
from typing import Any

import numpy as np
from numpy.typing import NDArray

from centroidkv.types import FloatArray

__all__ = ["nearest_centroid", "spectral"]

NEIGHBOURS = 10


def spectral(vectors: FloatArray, *, num_clusters: int, seed: int) -> NDArray[np.int64]:
    """Label vectors, shape [n, reduced], by normalised spectral clustering on a kNN graph.

    Labels run from 0 and leave no gaps; there may be fewer than asked for.
    """
    num_clusters = min(num_clusters, len(np.unique(vectors, axis=0)))
    if num_clusters < 2:
        return np.zeros(len(vectors), np.int64)
    from sklearn.cluster import AgglomerativeClustering, SpectralClustering

    if num_clusters >= len(vectors) - 1:
        # The eigenproblem needs fewer clusters than points; here nearly every point is its own.
        method = AgglomerativeClustering(n_clusters=num_clusters)
        return _without_gaps(method.fit_predict(vectors))

    method = SpectralClustering(
        n_clusters=num_clusters,
        affinity="nearest_neighbors",
        # A neighbourhood wider than a cluster would join them all.
        n_neighbors=min(NEIGHBOURS, max(2, len(vectors) // num_clusters)),
        assign_labels="cluster_qr",
        random_state=seed,
    )
    with warnings.catch_warnings():
        # Questions of unrelated topics make separate components; each gets clusters of its own.
        warnings.filterwarnings("ignore", message="Graph is not fully connected")
        labels = method.fit_predict(vectors.astype(np.float64))
    return _without_gaps(labels)


def nearest_centroid(vectors: FloatArray, centroids: FloatArray) -> NDArray[np.int64]:
    """Return each vector's nearest centroid by Euclidean distance; [n, d] and [k, d] to [n]."""
    squared = (centroids**2).sum(1) - 2 * (vectors @ centroids.T)
    return np.asarray(squared.argmin(1), np.int64)


def _without_gaps(labels: NDArray[Any]) -> NDArray[np.int64]:
    numbered = np.unique(labels, return_inverse=True)[1]
    return np.asarray(numbered, np.int64).reshape(-1)
