"""A mixture of Gaussians with diagonal covariances."""

import warnings

import numpy as np

from centroidkv.routing.clustering.nearest import Labels, without_gaps
from centroidkv.types import FloatArray

__all__ = ["gmm"]


def gmm(vectors: FloatArray, *, num_clusters: int, seed: int) -> Labels:
    """Label vectors, shape [n, reduced]."""
    from sklearn.exceptions import ConvergenceWarning
    from sklearn.mixture import GaussianMixture

    wide = vectors.astype(np.float64)
    # Relative to the spread: a cluster of equal vectors must not make a density without bound.
    floor = max(1e-3 * float(wide.var(0).mean()), 1e-12)
    method = GaussianMixture(
        num_clusters, covariance_type="diag", reg_covar=floor, random_state=seed
    )
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)
        return without_gaps(method.fit_predict(wide))
