"""Fitting a plan to questions whose retrievals are known (source paper, section 3.1).

reduce -> cluster -> per cluster centroid, representative, pins, radius.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from centroidkv.config import PlanConfig
from centroidkv.errors import ConfigError
from centroidkv.routing.admission import radii
from centroidkv.routing.clustering import cluster, means, nearest_centroid
from centroidkv.routing.history import Seen
from centroidkv.routing.pin_lists import Ballot, pin_lists
from centroidkv.routing.pins import vote
from centroidkv.routing.plan import Plan
from centroidkv.routing.projection import fit_projection
from centroidkv.routing.selection import choose_shape
from centroidkv.types import Cluster, FloatArray, Passage

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
    """Fit a plan to questions whose retrievals are known; its version is given when it is kept.

    Raises:
        ConfigError: The embedding of a question is not finite.
    """
    vectors = _finite(seen)
    shape = choose_shape(vectors, config)
    projection = fit_projection(vectors, dim=shape.pca_dim, seed=config.seed)
    reduced = projection.transform(vectors)
    labels = cluster(
        reduced, method=config.clustering, num_clusters=shape.num_clusters, seed=config.seed
    )
    groups, centroids = _reassigned(vectors, reduced, labels)
    limits = radii([vectors[g] for g in groups], centroids, quantile=config.radius_quantile)
    tokens = {p: count_tokens(passages[p].text) for p in {p for s in seen for p in s.passages}}
    clusters: list[Cluster] = []
    ballots: list[Ballot] = []
    for number, (group, centroid, limit) in enumerate(zip(groups, centroids, limits, strict=True)):
        order = group[np.linalg.norm(vectors[group] - centroid, axis=1).argsort(kind="stable")]
        members = [seen[i] for i in order]
        votes = vote([m.passages for m in members])
        ballots.append(Ballot(votes, config.max_pins, config.max_pin_tokens))
        found = Cluster(
            id=number,
            centroid=centroid,
            representative=members[0].question,
            members=tuple(m.question for m in members[:2]),
            pins=(),
            radius=limit,
            num_members=len(members),
            domain=_majority([(domains or {}).get(m.question, "") for m in members]),
        )
        clusters.append(found)
    lists = pin_lists(
        ballots,
        projection.transform(centroids),
        tokens,
        store_tokens=config.store_tokens,
        seed=config.seed,
    )
    clusters = [replace(c, pins=pins) for c, pins in zip(clusters, lists, strict=True)]
    pinned = {p: passages[p] for c in clusters for p in c.pins}
    return Plan(namespace, 0, projection, tuple(clusters), pinned)


def _finite(seen: Sequence[Seen]) -> FloatArray:
    vectors = np.stack([s.embedding for s in seen])
    wrong = np.flatnonzero(~np.isfinite(vectors).all(1))
    if len(wrong):
        raise ConfigError(
            f"the embeddings of {len(wrong)} questions are NaN or infinite, first of "
            f"{seen[wrong[0]].question!r}: check the embedder, or leave these questions out"
        )
    return vectors


def _reassigned(
    vectors: FloatArray, reduced: FloatArray, labels: NDArray[np.int64]
) -> tuple[list[NDArray[np.int64]], FloatArray]:
    """Give each member to its nearest centroid, as a request will be; drop what is left empty.

    Five to twelve of a hundred members of spectral clusters lie nearer another centroid. The
    projection is linear, so the reduced mean is the mean of the reduced.
    """
    full, nearest = means(vectors, labels), nearest_centroid(reduced, means(reduced, labels))
    kept, counts = np.unique(nearest, return_counts=True)
    groups = np.split(nearest.argsort(kind="stable"), np.cumsum(counts)[:-1])
    return groups, full[kept]


def _majority(domains: Sequence[str]) -> str:
    return max(sorted(set(domains)), key=domains.count)
