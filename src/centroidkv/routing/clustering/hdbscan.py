"""HDBSCAN: clusters of density, as many as it finds."""

import numpy as np

from centroidkv.routing.clustering.nearest import Labels, means, nearest_centroid, without_gaps
from centroidkv.types import FloatArray

__all__ = ["hdbscan"]

MIN_MEMBERS = 5


def hdbscan(vectors: FloatArray, *, num_clusters: int, seed: int) -> Labels:  # noqa: ARG001
    """Label vectors, shape [n, reduced]; noise goes to the nearest centroid.

    `num_clusters` is not looked at, and nothing is random. All noise makes one cluster.
    """
    if len(vectors) < 2 * MIN_MEMBERS:
        return np.zeros(len(vectors), np.int64)
    from sklearn.cluster import HDBSCAN

    found = HDBSCAN(min_cluster_size=MIN_MEMBERS, copy=True).fit_predict(vectors)
    core = found >= 0
    if not core.any():
        return np.zeros(len(vectors), np.int64)
    labels = np.asarray(found, np.int64)
    labels[~core] = nearest_centroid(vectors[~core], means(vectors[core], labels[core]))
    return without_gaps(labels)
