"""The naive twin of the Chroma index: a scan over an array. Also the fallback when it fails."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from centroidkv.routing.clustering import nearest_centroid
from centroidkv.types import Cluster, FloatArray

__all__ = ["MemoryIndex"]


@dataclass(frozen=True, slots=True)
class _Held:
    """Replaced as a whole, so that a reader never sees ids of one state and vectors of another."""

    ids: Sequence[int] = ()
    vectors: FloatArray = field(default_factory=lambda: np.empty((0, 0), np.float32))
    serves: Mapping[int, tuple[str, ...]] = field(default_factory=dict)  # domains, by id
    rows: Mapping[str, NDArray[np.int64]] = field(default_factory=dict)  # by domain


class MemoryIndex:
    """Centroids in an array. See `CentroidIndex` for the contract."""

    def __init__(self) -> None:
        self._held = _Held()

    def nearest(self, vector: FloatArray, domain: str | None = None) -> int | None:
        held = self._held
        if domain is not None:
            rows = held.rows.get(domain)
            if rows is None:
                return None
            return held.ids[int(rows[nearest_centroid(vector[None], held.vectors[rows])[0]])]
        if not held.ids:
            return None
        return held.ids[int(nearest_centroid(vector[None], held.vectors)[0])]

    def put(self, clusters: Sequence[Cluster], reduced: FloatArray) -> None:
        if not clusters:
            return
        held = self._held
        known = dict(zip(held.ids, held.vectors, strict=True))
        known.update(zip((c.id for c in clusters), reduced, strict=True))
        serves = {**held.serves, **{c.id: (c.domain, *c.guests) for c in clusters}}
        rows: dict[str, list[int]] = {}
        for row, cluster in enumerate(known):
            for domain in serves[cluster]:
                rows.setdefault(domain, []).append(row)
        by_domain = {domain: np.array(own, np.int64) for domain, own in rows.items()}
        self._held = _Held(list(known), np.stack(list(known.values())), serves, by_domain)

    def annotate(self, cluster: int, prefixes: Mapping[str, str]) -> None:
        """Nothing to note: the manifest knows the prefixes."""

    def faults(self, plan_vectors: FloatArray) -> list[str]:
        """Made from the plan in this process, so there is nothing to find."""
        return [] if len(plan_vectors) == len(self._held.ids) else ["centroids are missing"]

    def close(self) -> None:
        """Nothing to release."""
