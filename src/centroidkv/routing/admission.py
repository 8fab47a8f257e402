"""Who is admitted to a cluster: distance to its centroid in the full embedding space.

PCA drops just what makes a foreign question foreign, so the reduced space proposes a cluster and
the full space decides.
"""

import numpy as np

from centroidkv.types import FloatArray

__all__ = ["EVERYWHERE", "distance", "radii"]

# A radius that admits every question: finite, since JSON knows no infinity.
EVERYWHERE = float(np.finfo(np.float32).max)

# Weight of the pooled radius, in members: a cluster of five counts half on its own.
PRIOR_MEMBERS = 5.0


def distance(vector: FloatArray, centroid: FloatArray) -> float:
    """Return the Euclidean distance of two vectors of shape [dim]."""
    return float(np.linalg.norm(vector - centroid))


def radii(
    groups: list[FloatArray], centroids: FloatArray, *, quantile: float | None
) -> list[float]:
    """Return each cluster's admission radius.

    A member pulls the centroid towards itself, so each distance is corrected to what it would be
    had the member been left out, n / (n - 1). Small clusters are shrunk towards the pooled
    quantile, since the 95th percentile of four distances says little.

    Args:
        groups: Per cluster, the members' vectors, [members, dim].
        centroids: [clusters, dim].
        quantile: Share of the members that a radius admits; None admits every question.
    """
    if quantile is None:
        return [EVERYWHERE] * len(groups)
    distances = []
    for vectors, centroid in zip(groups, centroids, strict=True):
        n = len(vectors)
        raw = np.linalg.norm(vectors - centroid, axis=1)
        distances.append(raw * n / (n - 1) if n > 1 else np.empty(0, np.float32))
    known = np.concatenate(distances) if distances else np.empty(0, np.float32)
    pooled = float(np.quantile(known, quantile)) if known.size else 0.0
    result = []
    for own in distances:
        weight = own.size / (own.size + PRIOR_MEMBERS)
        mine = float(np.quantile(own, quantile)) if own.size else pooled
        result.append(weight * mine + (1 - weight) * pooled)
    return result
