"""k-means; by mini-batches above a few thousand vectors, in two levels for many clusters."""

import warnings

from centroidkv.routing.clustering.nearest import Labels, without_gaps
from centroidkv.routing.clustering.two_level import two_level_kmeans
from centroidkv.types import FloatArray

__all__ = ["kmeans"]

FULL_LIMIT = 5000
MANY_CLUSTERS = 500


def kmeans(vectors: FloatArray, *, num_clusters: int, seed: int) -> Labels:
    """Label vectors, shape [n, reduced]."""
    if len(vectors) > FULL_LIMIT and num_clusters >= MANY_CLUSTERS:
        return two_level_kmeans(vectors, num_clusters=num_clusters, seed=seed)
    from sklearn.cluster import KMeans, MiniBatchKMeans
    from sklearn.exceptions import ConvergenceWarning

    if len(vectors) > FULL_LIMIT:
        method = MiniBatchKMeans(num_clusters, batch_size=2048, n_init=3, random_state=seed)
    else:
        method = KMeans(num_clusters, n_init=4, random_state=seed)
    with warnings.catch_warnings():
        # Equal vectors leave fewer clusters than asked for, which callers expect.
        warnings.simplefilter("ignore", ConvergenceWarning)
        return without_gaps(method.fit_predict(vectors))
