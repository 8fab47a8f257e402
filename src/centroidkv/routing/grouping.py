"""Past questions to groups: each domain is clustered apart, then every member goes to its nearest.

Knows vectors and domains, not pins or plans.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from centroidkv.plan_config import PlanConfig
from centroidkv.routing.admission import radii
from centroidkv.routing.clustering import cluster, means, nearest_by_cells
from centroidkv.routing.selection import choose_shape
from centroidkv.types import FloatArray

__all__ = ["Group", "grouped", "shaped"]

Indices = NDArray[np.int64]


@dataclass(frozen=True, slots=True)
class Group:
    """One cluster's members (positions among all questions), centroid in the full space, radius.

    `voters` say what it pins: the members, and once more every question that is routed to it when
    no domain is given. `guests` are the other domains of those.
    """

    members: Indices
    voters: Indices
    centroid: FloatArray
    radius: float
    domain: str
    guests: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class _Part:
    """The clusters of one domain: members, centroids in the full space and in the reduced one."""

    domain: str
    members: list[Indices]
    full: FloatArray
    reduced: FloatArray


def shaped(
    vectors: FloatArray, config: PlanConfig, configs: Mapping[str, PlanConfig]
) -> tuple[int, dict[str, PlanConfig]]:
    """Settle the dimension that all domains share; a lone domain's number of clusters with it."""
    if len(configs) > 1:
        return choose_shape(vectors, replace(config, num_clusters=None)).pca_dim, dict(configs)
    ((domain, own),) = configs.items()
    shape = choose_shape(vectors, own)
    settled = replace(own, num_clusters=shape.num_clusters, clustering=shape.clustering)
    return shape.pca_dim, {domain: settled}


def grouped(
    vectors: FloatArray,
    reduced: FloatArray,
    domains: Sequence[str],
    configs: Mapping[str, PlanConfig],
) -> list[Group]:
    """Cluster the questions of each domain, in the order of `configs`.

    A question may lie nearer to a cluster of another domain: one in twenty to one in seven does.
    That cluster then serves the question's domain as a guest, or coverage would fall by that
    border.

    Args:
        vectors: [n, dim].
        reduced: The same in the space that centroids are searched in, [n, reduced].
        domains: Each question's domain, all known.
        configs: By domain.
    """
    kinds = np.array(domains)
    parts = [
        _clustered(vectors, reduced, np.flatnonzero(kinds == domain), config, domain)
        for domain, config in configs.items()
    ]
    home = [part.domain for part in parts for _ in part.members]
    members = [m for part in parts for m in part.members]
    full = np.concatenate([part.full for part in parts])
    limits = _radii(vectors, members, full, [configs[d].radius_quantile for d in home])
    coming: list[Indices] = [np.empty(0, np.int64) for _ in members]
    if len(parts) > 1:
        nearest = nearest_by_cells(reduced, np.concatenate([part.reduced for part in parts]))
        borders = np.searchsorted(np.sort(nearest), np.arange(1, len(members)))
        coming = np.split(nearest.argsort(kind="stable"), borders)
    return [
        Group(m, np.concatenate([m, c]), f, r, d, tuple(sorted(set(kinds[c].tolist()) - {d})))
        for m, c, f, r, d in zip(members, coming, full, limits, home, strict=True)
    ]


def _clustered(
    vectors: FloatArray, reduced: FloatArray, rows: Indices, config: PlanConfig, domain: str
) -> _Part:
    """Cluster some rows, and give each to its nearest centroid, as a request will be.

    Five to twelve of a hundred members of spectral clusters lie nearer another centroid; what is
    left empty is dropped. The projection is linear, so the reduced mean is the mean of the reduced.
    """
    own, own_reduced = vectors[rows], reduced[rows]
    # The dimension is the plan's, so only the number of clusters is left to choose.
    dim = max(1, reduced.shape[1])
    shape = choose_shape(own, replace(config, pca_dim=dim))
    labels = cluster(
        own_reduced, method=shape.clustering, num_clusters=shape.num_clusters, seed=config.seed
    )
    full, centroids = means(own, labels), means(own_reduced, labels)
    nearest = nearest_by_cells(own_reduced, centroids)
    kept, counts = np.unique(nearest, return_counts=True)
    groups = np.split(rows[nearest.argsort(kind="stable")], np.cumsum(counts)[:-1])
    return _Part(domain, groups, full[kept], centroids[kept])


def _radii(
    vectors: FloatArray,
    members: Sequence[Indices],
    centroids: FloatArray,
    quantiles: Sequence[float | None],
) -> list[float]:
    """Take each radius at its domain's quantile; small clusters lean on those of all domains."""
    by_quantile = {
        q: radii((vectors[m] for m in members), centroids, quantile=q) for q in set(quantiles)
    }
    return [by_quantile[q][i] for i, q in enumerate(quantiles)]
