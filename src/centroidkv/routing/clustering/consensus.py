"""Consensus of many clusterings: evidence accumulation (Fred and Jain, IEEE TPAMI 27(6), 2005).

Spectral clustering, k-means and Ward's criterion each cluster at several numbers around the one
asked for; how often two vectors fall together is their likeness, and average linkage cuts it. The
accidents of a single run cancel out, and above the true number it is outliers that are split off,
not clusters: a number that is somewhat too large costs little. Outliers are not counted as
clusters, and go to the nearest.
"""

from collections.abc import Iterator
from typing import Any

import numpy as np
from numpy.typing import NDArray

from centroidkv.routing.clustering.kmeans import kmeans
from centroidkv.routing.clustering.nearest import Labels, means, nearest_centroid, without_gaps
from centroidkv.routing.clustering.spectral import spectral
from centroidkv.routing.clustering.ward_tree import cut, ward_tree
from centroidkv.types import FloatArray

__all__ = ["consensus"]

SPREAD = (0.7, 0.85, 1.0, 1.2, 1.45, 1.75)
LEAST_SHARE = 0.1  # of the mean size of a cluster: what is smaller are outliers
MOST_CUTS = 3  # times the number asked for, until enough clusters are large
TIE_WEIGHT = 1e-3  # of the distance itself, which decides between equal likenesses


def consensus(vectors: FloatArray, *, num_clusters: int, seed: int) -> Labels:
    """Label at least two vectors, shape [n, reduced]; memory for n x n likenesses is taken."""
    from scipy.cluster.hierarchy import average  # type: ignore[import-untyped]
    from scipy.spatial.distance import pdist, squareform  # type: ignore[import-untyped]

    together = np.zeros((len(vectors), len(vectors)), np.float32)
    count = 0
    for labels in _members(vectors, num_clusters, seed):
        together += labels[:, None] == labels[None, :]
        count += 1
    far = pdist(vectors)
    apart = 1 - squareform(together, checks=False) / count
    tree = average(apart + TIE_WEIGHT * far / max(float(far.max()), 1e-12))
    labels, is_outlier = _sizeable(tree, num_clusters)
    kept = ~is_outlier
    return without_gaps(
        nearest_centroid(vectors, means(vectors[kept], without_gaps(labels[kept])))
        if is_outlier.any()
        else labels
    )


def _sizeable(tree: Any, num_clusters: int) -> tuple[Labels, NDArray[np.bool_]]:
    """Cut where so many clusters are of some size; return labels and who is in none of these."""
    for number in range(num_clusters, MOST_CUTS * num_clusters + 1):
        labels = cut(tree, number)
        sizes = np.bincount(labels)
        is_large = sizes >= LEAST_SHARE * len(labels) / num_clusters
        if is_large.sum() >= num_clusters:
            return labels, ~is_large[labels]
    labels = cut(tree, num_clusters)
    return labels, np.zeros(len(labels), np.bool_)


def _members(vectors: FloatArray, num_clusters: int, seed: int) -> Iterator[Labels]:
    """Yield the clusterings, members at their nearest centroids as in a plan."""
    most = len(np.unique(vectors, axis=0))
    tree = ward_tree(vectors)
    for number in sorted({min(most, max(2, round(num_clusters * s))) for s in SPREAD}):
        for labels in (
            cut(tree, number),
            kmeans(vectors, num_clusters=number, seed=seed + number),
            spectral(vectors, num_clusters=number, seed=seed),
        ):
            yield nearest_centroid(vectors, means(vectors, labels))
