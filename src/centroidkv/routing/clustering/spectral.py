"""Normalised spectral clustering on a kNN graph; by landmarks above a few thousand vectors."""

import warnings

import numpy as np

from centroidkv.routing.clustering.landmarks import landmark_spectral
from centroidkv.routing.clustering.nearest import Labels, without_gaps
from centroidkv.types import FloatArray

__all__ = ["spectral"]

NEIGHBOURS = 10
EXACT_LIMIT = 5000


def spectral(vectors: FloatArray, *, num_clusters: int, seed: int) -> Labels:
    """Label vectors, shape [n, reduced], by normalised spectral clustering on a kNN graph.

    Labels run from 0 and leave no gaps; there may be fewer than asked for.
    """
    num_clusters = min(num_clusters, len(np.unique(vectors, axis=0)))
    if num_clusters < 2:
        return np.zeros(len(vectors), np.int64)
    if len(vectors) > EXACT_LIMIT:
        return landmark_spectral(vectors, num_clusters=num_clusters, seed=seed)
    return _exact(vectors, num_clusters, seed)


def _exact(vectors: FloatArray, num_clusters: int, seed: int) -> Labels:
    from sklearn.cluster import AgglomerativeClustering, SpectralClustering

    if num_clusters >= len(vectors) - 1:
        # The eigenproblem needs fewer clusters than points; here nearly every point is its own.
        method = AgglomerativeClustering(n_clusters=num_clusters)
        return without_gaps(method.fit_predict(vectors))

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
        # As many questions as dimensions are taken for an affinity by mistake, and warned of.
        warnings.filterwarnings("ignore", message="The spectral clustering API has changed")
        labels = method.fit_predict(vectors.astype(np.float64))
    return without_gaps(labels)
