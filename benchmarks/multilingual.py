"""What the multilingual embedder is worth: Korean paraphrases, English intents, time per question.

Both embedders on the same texts in one run. A paraKQC sentence counts when the nearest of all other
sentences is one of its nine paraphrases; a BANKING77 question when the nearest past question has
its intent. The source paper's own pair of Korean questions is put among the others and a plan is
fitted: does one cluster hold both?

    python benchmarks/multilingual.py [--data ../shared/data] [--cache FOLDER] [--seconds 500]
"""

import argparse
import csv
import json
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from machine import machine

from centroidkv.plan_config import PlanConfig
from centroidkv.protocols import Embedder
from centroidkv.routing.admission import distance
from centroidkv.routing.e5 import E5Embedder
from centroidkv.routing.embedder import SentenceBertEmbedder
from centroidkv.routing.history import Seen
from centroidkv.routing.memory_index import MemoryIndex
from centroidkv.types import FloatArray
from centroidkv.versions.fitting import fit_plan

PAIR = ("AI 의 정의는 무엇이야?", "인공지능을 설명해 줘")
# Other ways to ask the pair's question: a log that holds two such questions holds more of them.
SAME_NEED = (
    "인공지능이 뭐예요?", "AI가 무엇인지 알려줘", "인공지능의 뜻을 설명해 줄래?", "AI란 무엇인가요",
)  # fmt: skip
NUM_TIMED = 40
PLAN_SETS = 30
PIECE = 64


class Deadline(Exception):
    """The time of this run is up; what was embedded is kept, and the next run goes on."""


class Kept:
    """Embeds lists of texts piece by piece, and keeps the vectors in a folder, if there is one."""

    def __init__(self, embedder: Embedder, name: str, cache: Path | None, end: float) -> None:
        self.embedder, self.name, self._cache, self._end = embedder, name, cache, end

    def embed(self, texts: Sequence[str], what: str) -> FloatArray:
        path = self._cache / f"{self.name}-{what}.npy" if self._cache else None
        found = np.load(path) if path and path.exists() else np.empty((0, 384), np.float32)
        while len(found) < len(texts):
            if time.monotonic() > self._end:
                raise Deadline(f"{self.name}, {what}: {len(found)} of {len(texts)} embedded")
            more = self.embedder.embed(texts[len(found) : len(found) + PIECE])
            found = np.concatenate([found, more])
            if path:
                np.save(path, found)
        return found


def paraphrases(folder: Path, sets: int | None) -> tuple[list[str], np.ndarray]:
    """Return the sentences of so many sets, drawn at random, and the number of each one's set."""
    lines = (folder / "korean/parakqc_topics0-2.tsv").read_text("utf-8").splitlines()
    texts = [line.split("\t")[2] for line in lines]
    drawn = np.arange(len(texts) // 10)
    if sets:
        drawn = np.sort(np.random.default_rng(0).permutation(drawn)[:sets])
    rows = (drawn[:, None] * 10 + np.arange(10)).ravel()
    return [texts[i] for i in rows], rows // 10


def nearest_share(vectors: FloatArray, groups: np.ndarray) -> float:
    likeness = vectors @ vectors.T
    np.fill_diagonal(likeness, -np.inf)
    return float((groups[likeness.argmax(1)] == groups).mean())


def intents(folder: Path, count: int) -> tuple[list[str], np.ndarray]:
    with (folder / "banking77/train.csv").open(newline="", encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    order = np.random.default_rng(0).permutation(len(rows))[:count]
    return [rows[i]["text"] for i in order], np.array([rows[i]["category"] for i in order])


def pair_in_plan(kept: Kept, texts: list[str], vectors: FloatArray) -> dict[str, Any]:
    """Fit a plan to the pair, other ways to ask it, and unrelated sets; route the pair by it."""
    questions = [*texts[: PLAN_SETS * 10], *SAME_NEED, *PAIR]
    own = kept.embedder.embed([*SAME_NEED, *PAIR])
    rows = np.concatenate([vectors[: PLAN_SETS * 10], own])
    seen = [Seen(q, v, ()) for q, v in zip(questions, rows, strict=True)]
    plan = fit_plan(
        seen, {}, PlanConfig(num_clusters=PLAN_SETS + 1), namespace="b" * 64, count_tokens=len
    )
    index = MemoryIndex()
    index.put(plan.clusters, plan.reduced())
    at = [index.nearest(r) for r in plan.projection.transform(own[-2:])]
    clusters = [plan.cluster(i) for i in at if i is not None]
    inside = [
        c is not None and distance(v, c.centroid) <= c.radius
        for v, c in zip(own[-2:], clusters, strict=True)
    ]
    return {
        "cosine": round(float(own[-2] @ own[-1]), 4),
        "cosine_to_others_p99": round(float(np.quantile(vectors @ own[-1], 0.99)), 4),
        "one_cluster": at[0] == at[1],
        "both_admitted": all(inside),
        "num_questions": len(questions),
        "num_clusters": len(plan.clusters),
        "members_of_their_cluster": clusters[0].num_members if clusters[0] else 0,
    }


def latencies(embedders: dict[str, Kept], texts: list[str]) -> dict[str, dict[str, float]]:
    """Return milliseconds of one question at a time, the embedders in turn."""
    times: dict[str, list[float]] = {name: [] for name in embedders}
    for text in texts[:NUM_TIMED]:
        for name, kept in embedders.items():
            begin = time.perf_counter()
            kept.embedder.embed([text])
            times[name].append((time.perf_counter() - begin) * 1e3)
    return {
        name: {
            "p50_ms": round(float(np.median(found)), 1),
            "p90_ms": round(float(np.quantile(found, 0.9)), 1),
        }
        for name, found in times.items()
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data", type=Path, default=Path("../shared/data"))
    parser.add_argument("--cache", type=Path, help="folder to keep embeddings in")
    parser.add_argument("--sets", type=int, help="paraKQC sets of ten, drawn at random; all 750")
    parser.add_argument("--past", type=int, default=3000, help="BANKING77 questions: %(default)s")
    parser.add_argument("--unseen", type=int, default=1000, help="and more of them: %(default)s")
    parser.add_argument("--seconds", type=float, default=1e6, help="embed no longer than that")
    parser.add_argument("--out", type=Path, default=Path("benchmarks/results/multilingual.json"))
    options = parser.parse_args()
    if options.cache:
        options.cache.mkdir(parents=True, exist_ok=True)
    loaded = (E5Embedder.load(), SentenceBertEmbedder.load("bundled:minilm"))
    end = time.monotonic() + options.seconds
    names = ("e5-multilingual", "minilm")
    embedders = {n: Kept(e, n, options.cache, end) for n, e in zip(names, loaded, strict=True)}
    korean, groups = paraphrases(options.data, options.sets)
    num_past = options.past
    english, labels = intents(options.data, num_past + options.unseen)
    report: dict[str, Any] = {
        "machine": machine(),
        "paraKQC_sentences": len(korean),
        "banking77_past": num_past,
        "banking77_unseen": options.unseen,
    }
    keep(options.out, report)
    for name, kept in embedders.items():
        vectors = kept.embed(korean, f"parakqc-{options.sets or 'all'}")
        report[name] = {
            "paraKQC_nearest_is_paraphrase": round(nearest_share(vectors, groups), 4),
            "papers_pair": pair_in_plan(kept, korean, vectors),
        }
        keep(options.out, report)
    report["latency_korean"] = latencies(embedders, korean)
    report["latency_english"] = latencies(embedders, english)
    keep(options.out, report)
    for name, kept in embedders.items():
        rows = kept.embed(english, f"banking77-{len(english)}")
        nearest = (rows[num_past:] @ rows[:num_past].T).argmax(1)
        right = float((labels[:num_past][nearest] == labels[num_past:]).mean())
        report[name]["banking77_nearest_intent"] = round(right, 4)
        keep(options.out, report)
    print(json.dumps(report, indent=1, ensure_ascii=False))


def keep(path: Path, report: dict[str, Any]) -> None:
    """Write what is known so far: embedding takes minutes."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(report, indent=1, ensure_ascii=False) + "\n", "utf-8")


if __name__ == "__main__":
    main()
