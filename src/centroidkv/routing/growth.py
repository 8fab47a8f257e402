"""New clusters from questions that no cluster admitted (leader clustering on near misses)."""

from collections.abc import Sequence

import numpy as np

from centroidkv.routing.clustering import nearest_centroid
from centroidkv.routing.history import Seen
from centroidkv.routing.pins import choose, vote
from centroidkv.routing.plan import Plan
from centroidkv.types import Cluster, FloatArray

__all__ = ["domain_near", "grow"]


def domain_near(plan: Plan, embedding: FloatArray) -> str:
    """Return the domain of the cluster nearest to a question that none admitted."""
    if not plan.clusters:
        return ""
    reduced = plan.projection.transform(embedding[None])
    return plan.clusters[int(nearest_centroid(reduced, plan.reduced())[0])].domain


def grow(
    waiting: Sequence[Seen],
    *,
    cluster_id: int,
    min_members: int,
    radius: float,
    max_pins: int,
    domain: str = "",
) -> Cluster | None:
    """Make a cluster around the newest question, if enough others of its domain wait near it.

    Args:
        waiting: Questions not admitted anywhere, oldest first.
        cluster_id: Id of the new cluster.
        min_members: How many questions make a cluster, the newest included.
        radius: Largest distance of two near questions; the new cluster's radius too.
        max_pins: Most passages to pin.
        domain: The new cluster's, unless one was given with the newest question.
    """
    if not waiting:
        return None
    newest = waiting[-1]
    near = [
        s
        for s in waiting
        if s.domain == newest.domain
        and float(np.linalg.norm(s.embedding - newest.embedding)) <= radius
    ]
    if len(near) < min_members:
        return None
    votes = vote([s.passages for s in near])
    pins = choose(votes, dict.fromkeys(votes, 0), max_pins=max_pins, max_tokens=0)
    # In a cluster's first prompt the passages stand as they were retrieved; keeping that order
    # makes the KV of that very prompt the cluster's.
    first = newest.passages
    ordered = sorted(pins, key=lambda p: (p not in first, first.index(p) if p in first else 0, p))
    return Cluster(
        id=cluster_id,
        centroid=np.mean([s.embedding for s in near], axis=0, dtype=np.float32),
        representative=newest.question,
        members=tuple(s.question for s in near[-2:]),
        pins=tuple(ordered),
        radius=radius,
        num_members=len(near),
        domain=newest.domain or domain,
    )
