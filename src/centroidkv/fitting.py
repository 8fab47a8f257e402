"""Fitting a plan to questions whose retrievals are known (source paper, section 3.1).

reduce -> cluster -> per cluster centroid, representative, pins, radius.
"""

from collections.abc import Callable, Mapping, Sequence

import numpy as np
from numpy.typing import NDArray

from centroidkv.config import PlanConfig
from centroidkv.routing.admission import radii
from centroidkv.routing.clustering import nearest_centroid, spectral
from centroidkv.routing.history import Seen
from centroidkv.routing.pins import canonical_order, choose, vote
from centroidkv.routing.plan import Plan
from centroidkv.routing.projection import fit_projection
from centroidkv.types import Cluster, FloatArray, Passage

QUESTIONS_PER_CLUSTER = 10

__all__ = ["fit_plan"]


def fit_plan(
    seen: Sequence[Seen],
    passages: Mapping[str, Passage],
    config: PlanConfig,
    *,
    namespace: str,
    count_tokens: Callable[[str], int],
    domains: Mapping[str, str] | None = None,
) -> Plan:
    """Fit a plan to questions whose retrievals are known; its version is given when it is kept."""
    vectors = np.stack([s.embedding for s in seen])
    projection = fit_projection(vectors, dim=config.pca_dim, seed=config.seed)
    reduced = projection.transform(vectors)
    wanted = config.num_clusters or max(1, round(len(seen) / QUESTIONS_PER_CLUSTER))
    labels = spectral(reduced, num_clusters=wanted, seed=config.seed)
    groups, centroids = _reassigned(vectors, reduced, labels)
    limits = radii([vectors[g] for g in groups], centroids, quantile=config.radius_quantile)
    popularity = vote([s.passages for s in seen])
    tokens = {p: count_tokens(passages[p].text) for p in popularity}
    clusters: list[Cluster] = []
    for number, (group, centroid, limit) in enumerate(zip(groups, centroids, limits, strict=True)):
        order = group[np.linalg.norm(vectors[group] - centroid, axis=1).argsort(kind="stable")]
        members = [seen[i] for i in order]
        votes = vote([m.passages for m in members])
        pins = choose(votes, tokens, max_pins=config.max_pins, max_tokens=config.max_pin_tokens)
        found = Cluster(
            id=number,
            centroid=centroid,
            representative=members[0].question,
            members=tuple(m.question for m in members[:2]),
            pins=canonical_order(pins, popularity),
            radius=limit,
            num_members=len(members),
            domain=_majority([(domains or {}).get(m.question, "") for m in members]),
        )
        clusters.append(found)
    pinned = {p: passages[p] for c in clusters for p in c.pins}
    return Plan(namespace, 0, projection, tuple(clusters), pinned)


def _reassigned(
    vectors: FloatArray, reduced: FloatArray, labels: NDArray[np.int64]
) -> tuple[list[NDArray[np.int64]], FloatArray]:
    """Give each member to its nearest centroid, as a request will be; drop what is left empty.

    Five to twelve of a hundred members of spectral clusters lie nearer another centroid. The
    projection is linear, so the reduced mean is the mean of the reduced.
    """
    count = int(labels.max()) + 1
    full = np.stack([vectors[labels == j].mean(0) for j in range(count)])
    small = np.stack([reduced[labels == j].mean(0) for j in range(count)])
    nearest = nearest_centroid(reduced, small)
    kept = [j for j in range(count) if (nearest == j).any()]
    return [np.flatnonzero(nearest == j) for j in kept], full[kept].astype(np.float32)


def _majority(domains: Sequence[str]) -> str:
    return max(sorted(set(domains)), key=domains.count)
