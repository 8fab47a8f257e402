"""Agglomerative clustering by Ward's criterion."""

from centroidkv.routing.clustering.nearest import Labels, without_gaps
from centroidkv.types import FloatArray

__all__ = ["agglomerative"]


def agglomerative(vectors: FloatArray, *, num_clusters: int, seed: int) -> Labels:  # noqa: ARG001
    """Label vectors, shape [n, reduced]; nothing is random."""
    from sklearn.cluster import AgglomerativeClustering

    return without_gaps(AgglomerativeClustering(num_clusters).fit_predict(vectors))
