"""What a plan's representatives do with unseen questions, counted without the model.

A hit is counted three ways: every cluster filled before the first question (`filled`), every
cluster empty and filled by the first question that comes to it (`online`), and every cluster
filled, but only questions within its radius served (`admitted`). A hit is wrong when the question
that left the answer has another label than the one asked.
"""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from centroidkv.routing.clustering import nearest_centroid
from centroidkv.routing.plan import Plan
from experiments.corpora import Split

STREAM = 2000


@dataclass(frozen=True, slots=True)
class Hits:
    """Shares of the questions that hit, and of the hits that were wrong.

    `ceiling` is the most that any `num_clusters` representatives could answer rightly, the labels
    known; `reachable` the same for these representatives, with perfect routing.
    """

    num_clusters: int
    asked: int
    filled: float
    filled_wrong: float
    online: float
    online_wrong: float
    streamed: int
    admitted: float
    admitted_wrong: float
    ceiling: float
    reachable: float


def hits(plan: Plan, split: Split) -> Hits:
    """Route every unseen question as a request is routed, and count."""
    vectors, labels = split.vectors[split.unseen], split.labels[split.unseen]
    nearest = nearest_centroid(plan.projection.transform(vectors), plan.reduced())
    label_of = {split.texts[i]: split.labels[i] for i in split.past}
    left = np.array([label_of[c.representative] for c in plan.clusters])
    centroids = np.stack([c.centroid for c in plan.clusters])
    far = np.linalg.norm(vectors - centroids[nearest], axis=1)
    admitted = far <= np.array([c.radius for c in plan.clusters])[nearest]
    wrong = left[nearest] != labels
    streamed, missed, online_wrong = online(nearest[:STREAM], labels[:STREAM])
    frequency = np.sort(np.unique(labels, return_counts=True)[1])[::-1]
    return Hits(
        num_clusters=len(plan.clusters),
        asked=len(labels),
        filled=1.0,
        filled_wrong=float(wrong.mean()),
        online=1 - missed / streamed,
        online_wrong=online_wrong / max(1, streamed - missed),
        streamed=streamed,
        admitted=float(admitted.mean()),
        admitted_wrong=float(wrong[admitted].mean()) if admitted.any() else 0.0,
        ceiling=float(frequency[: len(plan.clusters)].sum() / len(labels)),
        reachable=float(np.isin(labels, left).mean()),
    )


def online(nearest: NDArray[np.int64], labels: np.ndarray) -> tuple[int, int, int]:
    """Play questions in turn, each cluster filled by its first; return asked, missed and wrong.

    This is Algorithm 1 on an empty map: the miss branch sets `M[j*]`, and nothing replaces it.
    """
    left: dict[int, str] = {}
    wrong = 0
    for cluster, label in zip(nearest.tolist(), labels.tolist(), strict=True):
        wrong += left.setdefault(cluster, label) != label
    return len(labels), len(left), wrong
