"""How much of what is retrieved for unseen questions lies in the pins of their cluster.

python benchmarks/coverage.py
"""

import tempfile
from pathlib import Path

import bank
import numpy as np
from numpy.typing import NDArray

from centroidkv import Engine
from centroidkv.plan_config import PlanConfig
from centroidkv.retrieval import as_passage
from centroidkv.routing.clustering import nearest_centroid
from centroidkv.routing.history import Seen
from centroidkv.routing.pin_index import PinIndex
from centroidkv.routing.plan import Plan
from centroidkv.types import FloatArray, Passage
from centroidkv.versions.fitting import fit_plan

SHAPES = [(32, 8), (48, 8), (48, 10), (64, 10), (64, 12)]


def main() -> None:
    with tempfile.TemporaryDirectory() as folder, Engine.open(Path(folder) / "store") as engine:
        embedder = engine.router.embedder
        retriever = bank.retriever(embedder, k=16)
        past = [q["question"] for q in bank.past_questions()]
        unseen = [q.text for q in bank.unseen_questions()]
        found = {q: [as_passage(d) for d in retriever.invoke(q)] for q in past + unseen}
        passages = {p.id: p for ps in found.values() for p in ps}
        vectors = embedder.embed(past)
        seen = [
            Seen(q, v, tuple(p.id for p in found[q])) for q, v in zip(past, vectors, strict=True)
        ]
        top = [[p.id for p in found[q]][:4] for q in unseen]
        asked = embedder.embed(unseen)
        print(f"{'clusters':>8} {'pins':>5} {'of the top 4':>13} {'all four':>9} {'best':>6}")
        for clusters, pins in SHAPES:
            config = PlanConfig(num_clusters=clusters, max_pins=pins, max_pin_tokens=10_000)
            plan = fit_plan(seen, passages, config, namespace="0" * 64, count_tokens=len_in_words)
            nearest = nearest_centroid(plan.projection.transform(asked), plan.reduced())
            rows = [
                [p in plan.clusters[c].pins for p in t] for c, t in zip(nearest, top, strict=True)
            ]
            show(str(len(plan.clusters)), pins, rows)
            show("by found", pins, by_found(plan, passages, asked, nearest, top))
        own = [seen[i].passages[:8] for i in (asked @ vectors.T).argmax(1)]
        show("nearest", 8, [[p in o for p in t] for o, t in zip(own, top, strict=True)])


def by_found(
    plan: Plan,
    passages: dict[str, Passage],
    asked: FloatArray,
    nearest: NDArray[np.int64],
    top: list[list[str]],
) -> list[list[bool]]:
    """Tell what lies in the pins that an engine would choose once it knows what was found."""
    index, rows = PinIndex(), []
    index.put(plan.clusters, passages)
    for vector, number, ids in zip(asked, nearest, top, strict=True):
        first = plan.clusters[number]
        best = index.best([passages[p].text for p in ids], vector, carry_cost=0.05, first=first)
        pins = best.cluster.pins[: best.num_pins] if best else first.pins
        rows.append([p in pins for p in ids])
    return rows


def len_in_words(text: str) -> int:
    return len(text.split())


def show(name: str, pins: int, rows: list[list[bool]]) -> None:
    covered = np.array(rows)
    print(
        f"{name:>8} {pins:>5} {covered.mean():>13.2f} {covered.all(1).mean():>9.2f} "
        f"{covered[:, 0].mean():>6.2f}"
    )


if __name__ == "__main__":
    main()
