"""The simple recipes that pinned coverage is compared with, apart from the package's own code."""

from collections import Counter
from typing import Any

import numpy as np
from sklearn.cluster import KMeans

from centroidkv.routing.clustering import nearest_centroid
from centroidkv.routing.pins import canonical_order, choose, vote
from centroidkv.routing.projection import fit_projection

# Name, clusters, whether votes are weighted by rank.
PLAIN_RECIPES = [
    ("k = 200, most frequent", 200, False),
    ("k = 400, rank-weighted", 400, True),
    ("k = 1,000, rank-weighted", 1000, True),
]


def fixed_lists(
    case: Any, clusters: int, *, by_rank: bool, limits: dict[str, int]
) -> tuple[list[tuple[str, ...]], Any]:
    """K-means in the PCA space; each cluster's pins, and each unseen question's nearest cluster."""
    vectors = np.stack([s.embedding for s in case.seen])
    projection = fit_projection(vectors, dim=32, seed=0)
    fitted = KMeans(clusters, n_init=1, random_state=0).fit(projection.transform(vectors))
    popularity = vote([s.passages for s in case.seen])
    lists = []
    for number in range(clusters):
        members = [case.seen[i].passages for i in np.flatnonzero(fitted.labels_ == number)]
        votes = vote(members) if by_rank else Counter(p for m in members for p in m[:8])
        pins = choose(
            votes, case.tokens, max_pins=limits["max_pins"], max_tokens=limits["max_pin_tokens"]
        )
        lists.append(canonical_order(pins, popularity))
    centroids = fitted.cluster_centers_.astype(np.float32)
    return lists, nearest_centroid(projection.transform(case.asked), centroids)


def own_top(case: Any, depth: int) -> tuple[list[tuple[str, ...]], list[tuple[str, ...]]]:
    """Every past question's own passages, and those of each unseen question's nearest one."""
    vectors = np.stack([s.embedding for s in case.seen])
    lists = [s.passages[:depth] for s in case.seen]
    return lists, [lists[i] for i in (case.asked @ vectors.T).argmax(1)]
