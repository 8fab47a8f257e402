"""What routing adds to embedding a question, and how often the index finds the nearest centroid.

A plan of 200, 10,000 and 100,000 centroids is made from vectors around real ones
(`many_questions.py`: BANKING77 and CLINC150 train), four to a cluster, and put in force in Chroma
as the engine does. The questions are others of BANKING77 and CLINC150's validation set. For each,
the embedder alone and the whole route are timed one after the other, the order changing from
question to question; recall@1 is against a scan of all centroids. All of it once more after the
store was closed and opened.

    python benchmarks/routing.py [--data ../shared/data] [--sizes 200 10000 100000] [--cache DIR]
"""

import argparse
import csv
import json
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
from machine import machine
from many_questions import vectors_around

from centroidkv.routing.chroma_collections import HNSW
from centroidkv.routing.chroma_index import ChromaIndex, EmbeddedChroma
from centroidkv.routing.clustering import cluster, means, nearest_centroid
from centroidkv.routing.embedder import SentenceBertEmbedder
from centroidkv.routing.plan import Plan, PlanFolder
from centroidkv.routing.projection import fit_projection
from centroidkv.routing.router import Router
from centroidkv.types import Cluster, FloatArray, Passage

NAMESPACE = "5" * 64
MEMBERS = 4
PAST = 9000  # of BANKING77; the others ask
RECALL_QUESTIONS = 1000
WARM_UP = 20


def texts(data: Path) -> tuple[list[str], list[str]]:
    """Return past questions and others."""
    with (data / "banking77/train.csv").open(newline="", encoding="utf-8") as file:
        bank = [row["text"] for row in csv.DictReader(file)]
    order = np.random.default_rng(0).permutation(len(bank))
    shuffled = [bank[i] for i in order]
    sets = []
    for name in ("train", "val"):
        lines = (data / f"clinc150/{name}.jsonl").read_text("utf-8").splitlines()
        sets.append([json.loads(line)["text"] for line in lines])
    past, others = shuffled[:PAST] + sets[0], shuffled[PAST:] + sets[1]
    return past, [q for q in others if q not in set(past)]


def kept(path: Path | None, asked: list[str], embedder: SentenceBertEmbedder) -> FloatArray:
    if path is not None and path.exists():
        vectors: FloatArray = np.load(path)
        return vectors
    vectors = embedder.embed(asked)
    if path is not None:
        path.parent.mkdir(parents=True, exist_ok=True)
        np.save(path, vectors)
    return vectors


def plan_of(real: FloatArray, size: int) -> Plan:
    """Fit a plan of about `size` clusters; every cluster pins four passages, as plans do."""
    vectors = vectors_around(real, max(MEMBERS * size, 4000))
    projection = fit_projection(vectors, dim=32, seed=0)
    labels = cluster(projection.transform(vectors), method="kmeans", num_clusters=size, seed=0)
    pinned = [Passage.of(f"passage {i}") for i in range(1000)]
    counts = np.bincount(labels)
    clusters = tuple(
        Cluster(
            id=i,
            centroid=centroid,
            representative=f"a question of ordinary length about topic {i}",
            members=(f"question {i}", f"another question {i}"),
            pins=tuple(pinned[(i * 7 + j) % 1000].id for j in range(4)),
            radius=0.7,
            num_members=int(count),
        )
        for i, (centroid, count) in enumerate(zip(means(vectors, labels), counts, strict=True))
    )
    return Plan(NAMESPACE, 1, projection, clusters, {p.id: p for p in pinned})


def kept_plan(folder: Path | None, real: FloatArray, size: int) -> Plan:
    """Return the plan of a size, from the cache where it is there."""
    if folder is None:
        return plan_of(real, size)
    plans = PlanFolder(folder / f"routing-{size}")
    plans.folder.mkdir(parents=True, exist_ok=True)
    plan, _ = plans.latest(NAMESPACE)
    if plan is None:
        plan = plan_of(real, size)
        plans.save(plan)
    return plan


def times(router: Router, asked: list[str]) -> dict[str, Any]:
    """Return medians in milliseconds: the embedder alone, the route, and their ratio."""
    alone, routed, added = [], [], []
    for number, question in enumerate(asked):
        for way in ("alone", "route") if number % 2 else ("route", "alone"):
            begin = time.perf_counter()
            if way == "alone":
                router.embedder.embed([question])
                alone.append(time.perf_counter() - begin)
            else:
                route = router.route(question)
                routed.append(time.perf_counter() - begin)
                added.append(route.route_s)
    one, other = np.median(alone[WARM_UP:]), np.median(routed[WARM_UP:])
    return {
        "embed_ms": round(1e3 * float(one), 3),
        "route_ms": round(1e3 * float(other), 3),
        "added_ms": round(1e3 * float(np.median(added[WARM_UP:])), 3),
        "ratio_of_medians": round(float(other / one), 4),
        "median_of_ratios": round(
            float(np.median(np.divide(routed, alone)[WARM_UP:])), 4
        ),
        "num_questions": len(asked) - WARM_UP,
    }  # fmt: skip


def recall(plan: Plan, index: ChromaIndex, vectors: FloatArray) -> float:
    reduced = plan.projection.transform(vectors)
    exact = nearest_centroid(reduced, plan.reduced())
    found = np.array([index.nearest(v) for v in reduced])
    return round(float((found == exact).mean()), 4)


def measure(
    plan: Plan, asked: list[str], vectors: FloatArray, embedder: SentenceBertEmbedder
) -> dict[str, Any]:
    found: dict[str, Any] = {"num_centroids": len(plan.clusters)}
    with tempfile.TemporaryDirectory() as store:
        plans = PlanFolder(Path(store) / "plans")
        plans.folder.mkdir()
        plans.save(plan)
        chroma = EmbeddedChroma(Path(store) / "chroma", quarantine=Path(store) / "quarantine")
        for state in ("filled", "opened again"):
            begin = time.perf_counter()
            loaded, _ = plans.latest(NAMESPACE)
            assert loaded is not None
            router = Router(embedder, chroma.open)
            router.use(loaded)
            seconds = time.perf_counter() - begin
            index = chroma.open(loaded)
            found[state] = {
                "seconds_to_open": round(seconds, 2),
                **times(router, asked),
                "recall_at_1": recall(loaded, index, vectors[:RECALL_QUESTIONS]),
            }
            assert router.num_index_failures == 0
            index.close()
            router.close()
            print(len(plan.clusters), state, json.dumps(found[state]), flush=True)
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data", type=Path, default=Path("../shared/data"))
    parser.add_argument("--sizes", type=int, nargs="*", default=[200, 10_000, 100_000])
    parser.add_argument("--questions", type=int, default=300)
    parser.add_argument("--cache", type=Path, help="folder to keep embeddings in")
    parser.add_argument("--fit-only", action="store_true", help="make the plans for the cache")
    parser.add_argument("--out", type=Path, default=Path("benchmarks/results/routing.json"))
    options = parser.parse_args()
    embedder = SentenceBertEmbedder.load("bundled:minilm")
    past, asked = texts(options.data)
    folder = options.cache
    real = kept(folder / "routing-past.npy" if folder else None, past, embedder)
    vectors = kept(folder / "routing-asked.npy" if folder else None, asked, embedder)
    report = json.loads(options.out.read_text()) if options.out.exists() else {"sizes": {}}
    report.update(machine=machine(), hnsw=HNSW)
    for size in options.sizes:
        timed = asked[: options.questions + WARM_UP]
        plan = kept_plan(folder, real, size)
        if options.fit_only:
            continue
        found = measure(plan, timed, vectors, embedder)
        report["sizes"][str(size)] = found
        options.out.parent.mkdir(parents=True, exist_ok=True)
        options.out.write_text(json.dumps(report, indent=1) + "\n")


if __name__ == "__main__":
    main()
