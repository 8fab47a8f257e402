"""Landmark-based spectral clustering (Chen and Cai, AAAI 2011): no n x n matrix.

k-means landmarks -> affinity of each vector to its r nearest landmarks, [n, p] with r entries in a
row -> left singular vectors of the normalised affinity -> k-means.
"""

from typing import Any

import numpy as np

from centroidkv.routing.clustering.kmeans import kmeans
from centroidkv.routing.clustering.nearest import Labels, means
from centroidkv.types import FloatArray

__all__ = ["landmark_spectral"]

NUM_LANDMARKS = 1000
NEAREST_LANDMARKS = 5
SAMPLE_PER_LANDMARK = 20


def landmark_spectral(vectors: FloatArray, *, num_clusters: int, seed: int) -> Labels:
    """Label vectors, shape [n, reduced]; `num_clusters` is at most the distinct vectors.

    More clusters than half the landmarks are found by k-means: coordinates of so many dimensions
    would need more memory than the vectors, and clusters that small have no shape to follow.
    """
    count = min(len(vectors), NUM_LANDMARKS)
    if num_clusters > count // 2:
        return kmeans(vectors, num_clusters=num_clusters, seed=seed)
    landmarks = _landmarks(vectors, count, seed)
    if num_clusters > len(landmarks) // 2:
        return kmeans(vectors, num_clusters=num_clusters, seed=seed)
    coordinates = _embedding(_affinity(vectors, landmarks), num_clusters)
    return kmeans(coordinates, num_clusters=num_clusters, seed=seed)


def _landmarks(vectors: FloatArray, count: int, seed: int) -> FloatArray:
    size = min(len(vectors), SAMPLE_PER_LANDMARK * count)
    chosen = np.random.default_rng(seed).choice(len(vectors), size, replace=False)
    sample = vectors[np.sort(chosen)]
    count = min(count, len(np.unique(sample, axis=0)))
    return means(sample, kmeans(sample, num_clusters=count, seed=seed))


def _affinity(vectors: FloatArray, landmarks: FloatArray) -> Any:
    """Return the sparse weights, [n, p], rows summing to one: a Gaussian of the mean distance."""
    from scipy.sparse import csr_matrix  # type: ignore[import-untyped]
    from sklearn.neighbors import NearestNeighbors

    near = min(NEAREST_LANDMARKS, len(landmarks))
    far, at = NearestNeighbors(n_neighbors=near).fit(landmarks).kneighbors(vectors)
    width = max(float(far.mean()), 1e-12)
    # The row's own nearest is subtracted, so that an outlier's weights do not all vanish.
    weights = np.exp(-(far**2 - far[:, :1] ** 2) / (2 * width**2))
    weights /= weights.sum(1, keepdims=True)
    starts = np.arange(0, weights.size + 1, near)
    return csr_matrix((weights.ravel(), at.ravel(), starts), (len(vectors), len(landmarks)))


def _embedding(affinity: Any, num_clusters: int) -> FloatArray:
    """Return rows of the leading left singular vectors, [n, k], of length one.

    The Gram matrix of the landmarks, [p, p], has the right singular vectors as eigenvectors.
    """
    degrees = np.asarray(affinity.sum(0)).ravel()
    scaled = affinity.multiply(1 / np.sqrt(np.maximum(degrees, 1e-12))).tocsr()
    values, right = np.linalg.eigh((scaled.T @ scaled).toarray())
    left = scaled @ (right[:, -num_clusters:] / np.sqrt(np.maximum(values[-num_clusters:], 1e-12)))
    left /= np.maximum(np.linalg.norm(left, axis=1, keepdims=True), 1e-12)
    return np.asarray(left, np.float32)
