"""How much of what is retrieved for unseen questions lies in pinned prefixes, by tokens stored.

Questions of BANKING77 (3,000 past, 3,080 unseen by seed) over two real knowledge bases; the base
retriever is MiniLM, top 4 by cosine. Recipes were chosen on seed 0; the others are held out. A run
adds to the results file, so that seeds and knowledge bases can be measured one by one.

    python benchmarks/pinned_coverage.py [--data ../shared/data] [--seeds 2 3 4] [--cache FOLDER]
    python benchmarks/pinned_coverage.py --part curve --seeds 2
"""

import argparse
import csv
import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from coverage_recipes import PLAIN_RECIPES, fixed_lists, own_top
from machine import machine
from transformers import AutoTokenizer

from centroidkv.models.bundled import bundled_folder
from centroidkv.plan_config import PlanConfig
from centroidkv.routing.admission import distance
from centroidkv.routing.clustering import nearest_centroid
from centroidkv.routing.embedder import SentenceBertEmbedder
from centroidkv.routing.history import Seen
from centroidkv.routing.pin_index import PinIndex
from centroidkv.routing.pin_order import distinct_tokens
from centroidkv.routing.plan import Plan
from centroidkv.types import FloatArray, Passage
from centroidkv.versions.fitting import fit_plan

PAST, UNSEEN, DEPTH, TOP = 3000, 3080, 16, 4
STORE = 600_000
CARRY = 0.05
# Either limit suffices: the shorter passages by tokens, the longer by number.
LIMITS = {
    "ask_cfpb": {"max_pins": 10_000, "max_pin_tokens": 1500},
    "tau2_banking": {"max_pins": 8, "max_pin_tokens": 10**9},
}
FILES = {
    "ask_cfpb": ("ask_cfpb/passages.jsonl", "question", "answer"),
    "tau2_banking": ("tau2_banking/documents.jsonl", "title", "content"),
}
PLANS = [(300, None), (1000, STORE)]
CURVE = [100_000, 200_000, 400_000, 900_000]


@dataclass(frozen=True, slots=True)
class Case:
    """One split over one knowledge base; `tokens` counts each passage's."""

    seen: list[Seen]
    passages: dict[str, Passage]
    tokens: dict[str, int]
    asked: FloatArray
    top: list[tuple[str, ...]]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data", type=Path, default=Path("../shared/data"))
    parser.add_argument("--seeds", type=int, nargs="+", default=[2, 3, 4])
    parser.add_argument("--bases", nargs="+", default=list(FILES))
    parser.add_argument("--cache", type=Path, help="a folder to keep embeddings in")
    parser.add_argument("--part", choices=["recipes", "curve"], default="recipes")
    parser.add_argument("--out", type=Path, default=Path("benchmarks/results/pinned_coverage.json"))
    given = parser.parse_args()
    rows: list[dict[str, Any]] = (
        json.loads(given.out.read_text())["rows"] if given.out.exists() else []
    )
    for base in given.bases:
        for seed in given.seeds:
            mine = {"base": base, "seed": seed, "part": given.part}
            rows = [r for r in rows if not mine.items() <= r.items()]
            case = load(given.data, base, seed, given.cache)
            for row in measurements(case, base, given.part):
                rows.append(mine | row)
                print(rows[-1], flush=True)
            written = {"machine": machine(), "split": [PAST, UNSEEN], "rows": rows}
            given.out.write_text(json.dumps(written, indent=1) + "\n")
    print(table(rows))


def measurements(case: Case, base: str, part: str) -> Iterator[dict[str, Any]]:
    if part == "curve":
        yield from plans(case, base, [(1000, budget) for budget in CURVE])
    else:
        yield from baselines(case, base)
        yield from plans(case, base, PLANS)


# data


def load(folder: Path, base: str, seed: int, cache: Path | None) -> Case:
    name, head, body = FILES[base]
    records = [json.loads(line) for line in (folder / name).open(encoding="utf-8")]
    texts = [f"{r[head]}\n{r[body]}" for r in records]
    with (folder / "banking77/train.csv").open(newline="", encoding="utf-8") as file:
        questions = [row["text"] for row in csv.DictReader(file)]
    vectors = embedded("banking77", questions, cache)
    order = np.random.default_rng(seed).permutation(len(questions))[: PAST + UNSEEN]
    passages = [Passage(f"{i:05d}", text) for i, text in enumerate(texts)]
    tokenizer = AutoTokenizer.from_pretrained(bundled_folder("bundled:smollm2"))
    counts = [len(ids) for ids in tokenizer(texts, add_special_tokens=False)["input_ids"]]
    scores = vectors[order] @ embedded(base, texts, cache).T
    found = [
        tuple(passages[p].id for p in row)
        for row in np.argsort(-scores, axis=1, kind="stable")[:, :DEPTH]
    ]
    return Case(
        seen=[Seen(questions[i], vectors[i], found[n]) for n, i in enumerate(order[:PAST])],
        passages={p.id: p for p in passages},
        tokens={p.id: n for p, n in zip(passages, counts, strict=True)},
        asked=vectors[order[PAST:]],
        top=[ids[:TOP] for ids in found[PAST:]],
    )


def embedded(name: str, texts: list[str], cache: Path | None) -> FloatArray:
    kept = cache / f"{name}.npy" if cache else None
    if kept and kept.exists():
        return np.asarray(np.load(kept), np.float32)
    vectors = SentenceBertEmbedder.load("bundled:minilm").embed(texts)
    if kept:
        kept.parent.mkdir(parents=True, exist_ok=True)
        np.save(kept, vectors)
    return vectors


# what is measured


def measured(case: Case, pins: Sequence[Sequence[str]], full: Sequence[Sequence[str]]) -> Any:
    """Score the pins in front of each unseen question; `full` are those before trimming."""
    found = np.array([[p in own for p in top] for own, top in zip(pins, case.top, strict=True)])
    sizes = np.array([[case.tokens[p] for p in top] for top in case.top])
    computed = (sizes * ~found).sum(1)
    length = np.array([sum(case.tokens[p] for p in own) for own in pins])
    whole = np.array([sum(case.tokens[p] for p in own) for own in full])
    return {
        "share": round(float(found.mean()), 4),
        "best": round(float(found[:, 0].mean()), 4),
        "all_four": round(float(found.all(1).mean()), 4),
        "plain_tokens": round(float(sizes.sum(1).mean()), 1),
        "computed_tokens": round(float(computed.mean()), 1),
        "prompt_tokens": round(float((computed + length).mean()), 1),
        "untrimmed_tokens": round(float((computed + whole).mean()), 1),
    }


def baselines(case: Case, base: str) -> Iterator[dict[str, Any]]:
    """Simple recipes, by the nearest centroid, and the question's own top 8."""
    for name, clusters, by_rank in PLAIN_RECIPES:
        lists, near = fixed_lists(case, clusters, by_rank=by_rank, limits=LIMITS[base])
        pins = [lists[c] for c in near]
        yield {"recipe": name, "stored": distinct_tokens(lists, case.tokens)} | measured(
            case, pins, pins
        )
    lists, pins = own_top(case, 8)
    yield {
        "recipe": "nearest past question's own top 8",
        "stored": distinct_tokens(lists, case.tokens),
    } | measured(case, pins, pins)


def plans(
    case: Case, base: str, shapes: Sequence[tuple[int, int | None]]
) -> Iterator[dict[str, Any]]:
    """Plans of this package: pins of the nearest cluster, and pins by what was found."""
    for clusters, budget in shapes:
        config = PlanConfig(
            num_clusters=clusters, clustering="kmeans", store_tokens=budget, **LIMITS[base]
        )
        plan = fit_plan(
            case.seen,
            case.passages,
            config,
            namespace="0" * 64,
            count_tokens={case.passages[p].text: n for p, n in case.tokens.items()}.__getitem__,
        )
        stored = distinct_tokens([c.pins for c in plan.clusters], case.tokens)
        near = nearest_centroid(plan.projection.transform(case.asked), plan.reduced())
        clusters_near = [plan.clusters[c] for c in near]
        admitted = [
            distance(v, c.centroid) <= c.radius
            for v, c in zip(case.asked, clusters_near, strict=True)
        ]
        shape = {
            "clusters": len(plan.clusters),
            "lists": len({c.pins for c in plan.clusters}),
            "budget": budget,
            "stored": stored,
            "admitted": round(float(np.mean(admitted)), 4),
        }
        pins = [c.pins for c in clusters_near]
        yield {"recipe": "nearest cluster"} | shape | measured(case, pins, pins)
        pins, full = chosen(case, plan, near)
        kept = [p if a else () for p, a in zip(pins, admitted, strict=True)]
        of_admitted = measured(case, kept, kept)
        yield (
            {"recipe": "by what was found"}
            | shape
            | measured(case, pins, full)
            | {f"{k}_if_admitted": of_admitted[k] for k in ("share", "best", "computed_tokens")}
        )


def chosen(case: Case, plan: Plan, near: Any) -> tuple[list[Any], list[Any]]:
    """Return the pins that an engine would put first, trimmed, and the lists they are cut from."""
    index = PinIndex()
    index.put(plan.clusters, case.passages)
    pins, full = [], []
    for vector, top, number in zip(case.asked, case.top, near, strict=True):
        first = plan.clusters[number]
        best = index.best(
            [case.passages[p].text for p in top], vector, carry_cost=CARRY, first=first
        )
        full.append(best.cluster.pins if best else first.pins)
        pins.append(best.cluster.pins[: best.num_pins] if best else first.pins)
    return pins, full


def table(rows: list[dict[str, Any]]) -> str:
    """Return means over the seeds, one line per knowledge base and recipe."""
    lines = []
    keys = list(dict.fromkeys((r["base"], r["recipe"], r.get("clusters"), r.get("budget"))
                              for r in rows))  # fmt: skip
    for key in keys:
        own = [
            r for r in rows if key == (r["base"], r["recipe"], r.get("clusters"), r.get("budget"))
        ]
        figures = [
            f"{name} {np.mean([r[name] for r in own]):.3f}"
            for name in ("stored", "share", "best", "computed_tokens", "prompt_tokens")
        ]
        lines.append(" | ".join([*map(str, key), *figures]))
    return "\n".join(lines)


if __name__ == "__main__":
    main()
