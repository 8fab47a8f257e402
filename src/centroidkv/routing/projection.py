"""The reduction from the embedding space to the space that centroids are searched in (PCA)."""

from dataclasses import dataclass

import numpy as np

from centroidkv.types import FloatArray

__all__ = ["Projection", "fit_projection", "identity"]

# Vectors centred at once: a copy of a million of them would take as much memory again.
CHUNK = 65_536


@dataclass(frozen=True, slots=True)
class Projection:
    """A linear map: (x - mean) @ components.T, or nothing at all when `components` is empty.

    `mean` has shape [dim], `components` [reduced, dim].
    """

    mean: FloatArray
    components: FloatArray

    @property
    def is_identity(self) -> bool:
        return self.components.size == 0

    def transform(self, vectors: FloatArray) -> FloatArray:
        """Reduce vectors, shape [n, dim], to [n, reduced]."""
        if self.is_identity:
            return vectors
        reduced = np.empty((len(vectors), len(self.components)), np.float32)
        for start in range(0, len(vectors), CHUNK):
            part = slice(start, start + CHUNK)
            reduced[part] = (vectors[part] - self.mean) @ self.components.T
        return reduced


def identity() -> Projection:
    """Return the projection that changes nothing, for stores that have seen few questions."""
    return Projection(np.empty(0, np.float32), np.empty((0, 0), np.float32))


def fit_projection(vectors: FloatArray, *, dim: int, seed: int) -> Projection:
    """Fit PCA to vectors, shape [n, d] (source paper, section 3.1, step 2)."""
    dim = min(dim, vectors.shape[0] - 1, vectors.shape[1])
    if dim < 1 or not np.ptp(vectors, axis=0).any():
        return identity()  # one question, or always the same
    from sklearn.decomposition import PCA

    pca = PCA(n_components=dim, random_state=seed).fit(vectors)
    return Projection(pca.mean_.astype(np.float32), pca.components_.astype(np.float32))
