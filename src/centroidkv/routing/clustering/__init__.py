"""Clustering of past questions in the reduced space (source paper, section 3.1, step 3).

One file per method. Knows vectors only, not what they stand for.
"""

from collections.abc import Callable

import numpy as np

from centroidkv.errors import ConfigError
from centroidkv.routing.clustering.agglomerative import agglomerative
from centroidkv.routing.clustering.cells import nearest_by_cells
from centroidkv.routing.clustering.consensus import consensus
from centroidkv.routing.clustering.gmm import gmm
from centroidkv.routing.clustering.hdbscan import hdbscan
from centroidkv.routing.clustering.kmeans import kmeans
from centroidkv.routing.clustering.nearest import Labels, means, nearest_centroid, without_gaps
from centroidkv.routing.clustering.spectral import spectral
from centroidkv.types import FloatArray

__all__ = [
    "METHODS",
    "SAMPLE_SIZES",
    "Labels",
    "cluster",
    "means",
    "nearest_by_cells",
    "nearest_centroid",
    "spectral",
]

METHODS: dict[str, Callable[..., Labels]] = {
    "spectral": spectral,
    "kmeans": kmeans,
    "gmm": gmm,
    "agglomerative": agglomerative,
    "hdbscan": hdbscan,
    "consensus": consensus,
}

# Above these, a method is fitted on a sample; the others reach any size by themselves.
SAMPLE_SIZES = {"gmm": 20_000, "agglomerative": 5_000, "hdbscan": 10_000, "consensus": 3_000}


def cluster(
    vectors: FloatArray, *, method: str = "spectral", num_clusters: int, seed: int
) -> Labels:
    """Label vectors, shape [n, reduced], by a method of `METHODS`.

    Labels run from 0 and leave no gaps; there may be fewer than asked for, as when questions are
    equal. HDBSCAN finds its own number and ignores `num_clusters`.

    Raises:
        ConfigError: There is no such method, or a vector is not finite.
    """
    if method not in METHODS:
        raise ConfigError(f"clustering must be one of {', '.join(METHODS)}, not {method!r}")
    if not np.isfinite(vectors).all():
        raise ConfigError(
            "some vectors to cluster are NaN or infinite: the embedder failed on these questions; "
            "check the embedder, or leave them out"
        )
    num_clusters = min(num_clusters, len(np.unique(vectors, axis=0)))
    if len(vectors) < 2 or (num_clusters < 2 and method != "hdbscan"):
        return np.zeros(len(vectors), np.int64)
    size = SAMPLE_SIZES.get(method, len(vectors))
    if len(vectors) <= size:
        return METHODS[method](vectors, num_clusters=num_clusters, seed=seed)
    chosen = np.random.default_rng(seed).choice(len(vectors), size, replace=False)
    sample = vectors[np.sort(chosen)]
    fitted = min(num_clusters, len(np.unique(sample, axis=0)))
    labels = METHODS[method](sample, num_clusters=fitted, seed=seed)
    return without_gaps(nearest_centroid(vectors, means(sample, labels)))
