"""Table 1 and Figures 3 to 5 without the model: how often a clustering hits, and how rightly.

Every point is a plan fitted as `Engine.build` fits it (embedding and retrieval left out), over
several splits by seed. Response times are not measured here: what a hit costs does not depend on
how the clusters were found, so `tables.py` composes them from `times.py`.
"""

import statistics
import tempfile
import time
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from centroidkv.plan_config import PlanConfig
from centroidkv.routing.history import Seen
from centroidkv.routing.plan import Plan
from centroidkv.store import Store
from centroidkv.versions.fitting import fit_plan
from experiments.corpora import Corpus, Split, split
from experiments.hits import hits

METHODS = ("spectral", "agglomerative", "gmm", "kmeans", "hdbscan")
PAPER = {"clustering": "spectral", "num_clusters": 8, "pca_dim": 32}
NUM_PAST = 2000
CLUSTERS = (1, 2, 4, 6, 8, 10, 12, 16, 24, 32, 64, 77, 128, 200, 300, 500, 1000)
DIMS = (2, 4, 8, 16, 32, 64, 128, 256, 384)
SIZES = (1000, 2000, 3000, 4000, 5000, 6000, 7000, 8000, 9000)
LEAST_UNSEEN = 999  # what Figure 5 is measured on, whatever the size


@dataclass(frozen=True, slots=True)
class Point:
    """One plan to fit: which table or figure it belongs to, and how it is made."""

    figure: str
    num_past: int
    settings: dict[str, Any]


def points(corpus: Corpus, *, num_past: int, quick: bool) -> Iterator[Point]:
    """Yield what is to be fitted for a corpus; tables and Figures 3 and 4 with `num_past`."""
    past = min(num_past, corpus.num_past or num_past)
    for method in METHODS:
        yield Point("table1", past, PAPER | {"clustering": method})
    for k in CLUSTERS[::4] if quick else CLUSTERS:
        if k <= past:
            yield Point("figure3", past, PAPER | {"num_clusters": k})
    for d in DIMS[::4] if quick else DIMS:
        yield Point("figure4", past, PAPER | {"pca_dim": d})
        yield Point("figure4", past, PAPER | {"pca_dim": d, "num_clusters": past // 10})
    most = corpus.num_past or len(corpus.questions) - LEAST_UNSEEN
    for n in SIZES[:1] if quick else SIZES:
        if n <= most:
            yield Point("figure5", n, PAPER | {})
            yield Point("figure5", n, PAPER | {"num_clusters": n // 10})


def sweep(
    corpus: Corpus, vectors: np.ndarray, point: Point, seeds: Sequence[int]
) -> Iterator[dict[str, Any]]:
    """Fit and count one point for every seed."""
    for seed in seeds:
        drawn = split(corpus, vectors, seed=seed, num_past=point.num_past)
        if point.figure == "figure5" and not corpus.num_past:
            drawn = Split(drawn.past, drawn.unseen[:LEAST_UNSEEN], *_rest(drawn))
        plan, seconds = fitted(drawn, point.settings | {"seed": seed})
        # Routing takes the same time for every seed and method; once is enough.
        lookup = lookup_ms(plan, drawn) if seed == seeds[0] else None
        row = {"corpus": corpus.name, "figure": point.figure, "seed": seed}
        row |= {"num_past": point.num_past, **point.settings, "fit_s": seconds}
        # HDBSCAN finds a number of its own: `k_asked` is what was asked for.
        row["k_asked"] = row.pop("num_clusters")
        yield row | {"lookup_ms": lookup, **asdict(hits(plan, drawn))}


def fitted(drawn: Split, settings: dict[str, Any]) -> tuple[Plan, float]:
    """Fit a plan to the past questions; return it and the seconds that took."""
    seen = [Seen(drawn.texts[i], drawn.vectors[i], ()) for i in drawn.past]
    started = time.perf_counter()
    plan = fit_plan(seen, {}, PlanConfig.of(settings), namespace="0" * 64, count_tokens=len)
    return plan, time.perf_counter() - started


def lookup_ms(plan: Plan, drawn: Split, *, rounds: int = 100) -> float:
    """Return the median time from a vector to its cluster: PCA and the query to Chroma."""
    taken = []
    with tempfile.TemporaryDirectory() as folder:
        store = Store.open(Path(folder) / "store")
        index = store.open_index(plan)
        for i in drawn.unseen[:rounds]:
            started = time.perf_counter()
            index.nearest(plan.projection.transform(drawn.vectors[i : i + 1])[0])
            taken.append(time.perf_counter() - started)
        index.close()
        store.close()
    return statistics.median(taken) * 1e3


def _rest(drawn: Split) -> tuple[np.ndarray, np.ndarray, tuple[str, ...]]:
    return drawn.vectors, drawn.labels, drawn.texts
