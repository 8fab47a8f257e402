"""Ward's hierarchy of vectors, grown once and cut at many numbers of clusters."""

from typing import Any

import numpy as np

from centroidkv.routing.clustering.nearest import Labels, without_gaps
from centroidkv.types import FloatArray

__all__ = ["cut", "ward_tree"]


def ward_tree(vectors: FloatArray) -> Any:
    """Return the merges of at least two vectors, shape [n, reduced], as scipy's linkage."""
    from scipy.cluster.hierarchy import ward  # type: ignore[import-untyped]

    return ward(vectors.astype(np.float64))


def cut(tree: Any, num_clusters: int) -> Labels:
    """Label the vectors of a tree; there may be fewer clusters than asked for, where merges tie."""
    from scipy.cluster.hierarchy import fcluster

    return without_gaps(fcluster(tree, num_clusters, criterion="maxclust"))
