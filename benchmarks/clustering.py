"""How well questions are clustered by intent, and what fitting costs in time and memory.

Accuracy is by the best matching of clusters to intents (Hungarian). `hindsight` is the best number
of clusters on a grid for spectral clustering, which only labels can tell; `auto` does not see
them. `hindsight_by_consensus` is the same for the method that `auto` clusters by.

    python benchmarks/clustering.py [--data ../shared/data] [--sizes 10000 30000 100000]
"""

import argparse
import csv
import json
import multiprocessing
import resource
import time
from pathlib import Path
from typing import Any

import numpy as np
from machine import machine
from scipy.optimize import linear_sum_assignment
from sklearn.metrics import normalized_mutual_info_score

from centroidkv.plan_config import PlanConfig
from centroidkv.routing.clustering import METHODS, cluster, means, nearest_centroid
from centroidkv.routing.embedder import SentenceBertEmbedder
from centroidkv.routing.projection import fit_projection
from centroidkv.routing.selection import choose_shape, default_clusters
from centroidkv.types import FloatArray

NUMBERS = (2, 3, 4, 5, 6, 8, 10, 12, 15, 18, 22, 26, 31, 37, 45, 54, 64, 77, 93, 111, 134, 200, 300)
# Skewed draws of intents. The choice was made on dstc11, clinc150 and draws 10 to 12; a preference
# that keeps big topics from being taken for intents was added after a look at draws 20 to 22.
# Draws from 30 on had no part in it.
SUBSETS = tuple((count, seed) for seed in (30, 31, 32) for count in (10, 20, 30, 40))
MIXTURE = 200


def texts(folder: Path, name: str) -> tuple[list[str], list[str]]:
    """Return the questions of a data set and their intents."""
    if name == "banking77":
        with (folder / "banking77/train.csv").open(newline="", encoding="utf-8") as file:
            rows = list(csv.DictReader(file))
        return [r["text"] for r in rows], [r["category"] for r in rows]
    path = {
        "dstc11": "dstc11/development-test-utterances.jsonl",
        "clinc150": "clinc150/train.jsonl",
    }
    key = "utterance" if name == "dstc11" else "text"
    rows = [json.loads(line) for line in (folder / path[name]).open(encoding="utf-8")]
    return [r[key] for r in rows], [r["intent"] for r in rows]


def labelled(folder: Path, cache: Path | None) -> dict[str, tuple[FloatArray, Any]]:
    """Return vectors and intents by name: two data sets, and random intents of a third."""
    found: dict[str, tuple[FloatArray, Any]] = {}
    for name in ("dstc11", "clinc150", "banking77"):
        asked, intents = texts(folder, name)
        kept = cache / f"{name}.npy" if cache else None
        vectors = (
            np.load(kept)
            if kept and kept.exists()
            else SentenceBertEmbedder.load("bundled:minilm").embed(asked)
        )
        if kept and not kept.exists():
            np.save(kept, vectors)
        found[name] = (vectors, np.unique(intents, return_inverse=True)[1])
    vectors, truth = found["banking77"]
    for count, seed in SUBSETS:
        rows = skewed(truth, count, seed)
        found[f"banking77, {count} intents, draw {seed}"] = (
            vectors[rows],
            np.unique(truth[rows], return_inverse=True)[1],
        )
    del found["banking77"]
    return found


def skewed(truth: Any, count: int, seed: int) -> Any:
    """Return rows of some intents, of sizes as in a log: log-normal around 30 questions."""
    random = np.random.default_rng(seed)
    rows = []
    for intent in random.permutation(truth.max() + 1)[:count]:
        own = random.permutation(np.flatnonzero(truth == intent))
        rows.append(own[: max(6, int(np.exp(random.normal(3.4, 0.6))))])
    return np.sort(np.concatenate(rows))


def agreement(truth: Any, labels: Any) -> dict[str, float]:
    """Return accuracy and normalised mutual information of a clustering."""
    table = np.zeros((truth.max() + 1, labels.max() + 1))
    np.add.at(table, (truth, labels), 1)
    matched = table[linear_sum_assignment(-table)].sum() / len(truth)
    return {
        "accuracy": round(float(matched), 4),
        "nmi": round(float(normalized_mutual_info_score(truth, labels)), 4),
    }


def outcome(vectors: FloatArray, truth: Any, config: PlanConfig, k: int) -> dict[str, Any]:
    dim = 32 if config.pca_dim == "auto" else config.pca_dim
    reduced = fit_projection(vectors, dim=dim, seed=0).transform(vectors)
    labels = cluster(reduced, method=config.clustering, num_clusters=k, seed=0)
    # As a plan is fitted: members go to their nearest centroid.
    labels = nearest_centroid(reduced, means(reduced, labels))
    return {"num_clusters": k, "pca_dim": dim, **agreement(truth, labels)}


def compare(vectors: FloatArray, truth: Any) -> dict[str, Any]:
    """Return what each way to number the clusters comes to on one data set."""
    fixed = PlanConfig()
    begin = time.perf_counter()
    shape = choose_shape(vectors, PlanConfig(num_clusters="auto"))
    seconds = time.perf_counter() - begin
    chosen = PlanConfig(pca_dim=shape.pca_dim, clustering=shape.clustering)  # type: ignore[arg-type]
    numbers = [k for k in NUMBERS if k <= len(vectors) // 4]
    grid = [outcome(vectors, truth, fixed, k) for k in numbers]
    true = int(truth.max()) + 1
    near = [k for k in numbers if shape.num_clusters / 1.8 <= k <= shape.num_clusters * 1.8]
    by_consensus = [outcome(vectors, truth, PlanConfig(clustering="consensus"), k) for k in near]
    return {
        "num_questions": len(vectors),
        "num_intents": true,
        "auto": outcome(vectors, truth, chosen, shape.num_clusters),
        "auto_s": round(seconds, 1),
        "auto_is_complete": shape.is_complete,
        "hindsight": max(grid, key=lambda r: r["accuracy"]),
        "hindsight_by_consensus": max(by_consensus, key=lambda r: r["accuracy"]),
        "spectral_at_auto": outcome(vectors, truth, fixed, shape.num_clusters),
        "hindsight_nmi": max(r["nmi"] for r in grid),
        "true_k": outcome(vectors, truth, fixed, true),
        "n/10": outcome(vectors, truth, fixed, default_clusters(len(vectors))),
        "methods_at_true_k": {
            m: outcome(vectors, truth, PlanConfig(clustering=m), true)  # type: ignore[arg-type]
            for m in METHODS
        },
    }


def mixture(count: int) -> FloatArray:
    """Return unit vectors around 200 directions, shape [count, 384]."""
    random = np.random.default_rng(0)
    centres = random.standard_normal((MIXTURE, 384)).astype(np.float32)
    points = centres[random.integers(0, MIXTURE, count)]
    points += random.standard_normal((count, 384)).astype(np.float32)
    points /= np.linalg.norm(points, axis=1, keepdims=True)
    return points


def cost(job: tuple[int, str, int | None]) -> dict[str, Any]:
    """Reduce and cluster in a process of its own, so that the peak of its memory is its own."""
    count, method, number = job
    vectors = mixture(count)
    number = number or default_clusters(count)
    mixture(100)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    begin = time.perf_counter()
    reduced = fit_projection(vectors, dim=32, seed=0).transform(vectors)
    labels = cluster(reduced, method=method, num_clusters=number, seed=0)
    seconds = time.perf_counter() - begin
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return {
        "num_vectors": count,
        "method": method,
        "asked_clusters": number,
        "num_clusters": int(labels.max()) + 1,
        "seconds": round(seconds, 2),
        "peak_mib": peak // 1024,
        "before_mib": before // 1024,
    }


def costs(sizes: list[int]) -> list[dict[str, Any]]:
    found = []
    jobs = [(n, m, MIXTURE) for n in sizes for m in METHODS]
    jobs += [(n, "spectral", None) for n in sizes]
    for job in jobs:
        with multiprocessing.get_context("spawn").Pool(1) as pool:
            found.append(pool.map(cost, [job])[0])
        print(json.dumps(found[-1]), flush=True)
    return found


def keep(path: Path, report: dict[str, Any]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(report, indent=1) + "\n")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data", type=Path, default=Path("../shared/data"))
    parser.add_argument("--cache", type=Path, help="folder to keep embeddings in")
    parser.add_argument("--sizes", type=int, nargs="*", default=[10_000, 30_000, 100_000])
    parser.add_argument("--only", choices=["accuracy", "cost"])
    parser.add_argument("--at-most", type=int, default=99, help="data sets measured in this run")
    parser.add_argument("--resume", action="store_true", help="keep data sets measured before")
    parser.add_argument("--out", type=Path, default=Path("benchmarks/results/clustering.json"))
    options = parser.parse_args()
    report = json.loads(options.out.read_text()) if options.out.exists() else {}
    report["machine"] = machine()
    report.pop("notes", None)
    if options.only != "cost":
        report["accuracy"] = report.get("accuracy", {}) if options.resume else {}
        for name, (vectors, truth) in labelled(options.data, options.cache).items():
            if name in report["accuracy"] or options.at_most < 1:
                continue
            options.at_most -= 1
            report["accuracy"][name] = found = compare(vectors, truth)
            for way in ("auto", "hindsight", "hindsight_by_consensus", "true_k", "n/10"):
                r = found[way]
                print(f"{name:32}{way:24}{r['num_clusters']:5}{r['accuracy']:7.3f}{r['nmi']:7.3f}",
                      flush=True)  # fmt: skip
            keep(options.out, report)
    if options.only != "accuracy":
        report["cost"] = costs(options.sizes)
    keep(options.out, report)


if __name__ == "__main__":
    main()
