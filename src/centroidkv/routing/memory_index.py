"""The naive twin of the Chroma index: a scan over an array. Also the fallback when it fails."""

from collections.abc import Mapping, Sequence

import numpy as np

from centroidkv.routing.clustering import nearest_centroid
from centroidkv.types import Cluster, FloatArray

__all__ = ["MemoryIndex"]


class MemoryIndex:
    """Centroids in an array. See `CentroidIndex` for the contract."""

    def __init__(self) -> None:
        self._ids: list[int] = []
        self._vectors: FloatArray = np.empty((0, 0), np.float32)

    def nearest(self, vector: FloatArray) -> int | None:
        if not self._ids:
            return None
        return self._ids[int(nearest_centroid(vector[None], self._vectors)[0])]

    def put(self, clusters: Sequence[Cluster], reduced: FloatArray) -> None:
        if not clusters:
            return
        known = dict(zip(self._ids, self._vectors, strict=True))
        known.update(zip((c.id for c in clusters), reduced, strict=True))
        self._ids, self._vectors = list(known), np.stack(list(known.values()))

    def annotate(self, cluster: int, prefixes: Mapping[str, str]) -> None:
        """Nothing to note: the manifest knows the prefixes."""

    def faults(self, plan_vectors: FloatArray) -> list[str]:
        """Made from the plan in this process, so there is nothing to find."""
        return [] if len(plan_vectors) == len(self._ids) else ["centroids are missing"]

    def close(self) -> None:
        """Nothing to release."""
