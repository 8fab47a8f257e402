"""How many foreign questions are admitted, at which admission of held-out questions of the bank.

CLINC150: a plan is fitted to the training questions on banking and credit cards; its validation
questions are held out and should be admitted, its out-of-scope questions should not. BANKING77 as a
second bank: 3,000 questions make the plan, 2,000 others should be admitted. `at 95 %` scales all
radii by one factor, so that exactly 95 % of the held-out are admitted; `rule` is how the radii of
the clusters are weighed against the pooled one, in members (`PRIOR_MEMBERS`).

    python benchmarks/out_of_scope.py [--data ../shared/data] [--cache DIR]
"""

import argparse
import csv
import json
from pathlib import Path
from typing import Any

import numpy as np
from machine import machine

from centroidkv.plan_config import PlanConfig
from centroidkv.routing import admission
from centroidkv.routing.clustering import nearest_centroid
from centroidkv.routing.embedder import SentenceBertEmbedder
from centroidkv.routing.history import Seen
from centroidkv.routing.plan import Plan
from centroidkv.types import FloatArray
from centroidkv.versions.fitting import fit_plan

PRIORS = (5.0, 50.0, 1e9)
QUANTILES = (0.95, 0.97, 0.98, 0.99)
NUMBERS = (30, 75, None)  # of clusters; None is the default, a tenth of the questions
OUT_OF_SCOPE = ("oos_train", "oos_val")


def clinc(data: Path, name: str) -> list[str]:
    lines = (data / f"clinc150/{name}.jsonl").read_text("utf-8").splitlines()
    return [json.loads(line)["text"] for line in lines]


def banking(data: Path) -> tuple[list[str], list[str]]:
    with (data / "banking77/train.csv").open(newline="", encoding="utf-8") as file:
        texts = [row["text"] for row in csv.DictReader(file)]
    order = np.random.default_rng(0).permutation(len(texts))
    shuffled = [texts[i] for i in order]
    return shuffled[:3000], shuffled[3000:5000]


def embedded(
    texts: dict[str, list[str]], cache: Path | None, embedder: SentenceBertEmbedder
) -> dict[str, FloatArray]:
    path = cache / "out_of_scope.npz" if cache else None
    if path and path.exists():
        with np.load(path) as kept:
            return dict(kept)
    vectors = {name: embedder.embed(part) for name, part in texts.items()}
    if path:
        path.parent.mkdir(parents=True, exist_ok=True)
        np.savez(path, **vectors)
    return vectors


def ratios(plan: Plan, vectors: FloatArray) -> FloatArray:
    """Return each question's distance to its cluster's centroid over the cluster's radius."""
    nearest = nearest_centroid(plan.projection.transform(vectors), plan.reduced())
    far = np.linalg.norm(vectors - np.stack([c.centroid for c in plan.clusters])[nearest], axis=1)
    return np.asarray(far / np.array([c.radius for c in plan.clusters])[nearest])


def rates(plan: Plan, held_out: FloatArray, foreign: dict[str, FloatArray]) -> dict[str, Any]:
    mine = ratios(plan, held_out)
    theirs = {name: ratios(plan, vectors) for name, vectors in foreign.items()}
    factor = float(np.quantile(mine, 0.95))
    return {
        "held_out_admitted": round(float((mine <= 1).mean()), 4),
        **{f"{name}_admitted": round(float((r <= 1).mean()), 4) for name, r in theirs.items()},
        **{f"{n}_at_95": round(float((r <= factor).mean()), 4) for n, r in theirs.items()},
    }


def fitted(vectors: FloatArray, number: int | None, quantile: float) -> Plan:
    seen = [Seen(str(i), v, ()) for i, v in enumerate(vectors)]
    config = PlanConfig(num_clusters=number, radius_quantile=quantile)
    return fit_plan(seen, {}, config, namespace="5" * 64, count_tokens=len)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data", type=Path, default=Path("../shared/data"))
    parser.add_argument("--cache", type=Path, help="folder to keep embeddings in")
    parser.add_argument("--out", type=Path, default=Path("benchmarks/results/out_of_scope.json"))
    options = parser.parse_args()
    past, others = banking(options.data)
    texts = {"banking_past": past, "banking_held_out": others}
    texts |= {name: clinc(options.data, name) for name in ("train", "val", *OUT_OF_SCOPE)}
    embedder = SentenceBertEmbedder.load("bundled:minilm")
    vectors = embedded(texts, options.cache, embedder)
    foreign = {name: vectors[name] for name in OUT_OF_SCOPE}
    own = admission.PRIOR_MEMBERS
    report: dict[str, Any] = {"machine": machine(), "rule_in_force": own, "rows": []}
    for bank, past_name, held_out in (
        ("clinc150", "train", "val"),
        ("banking77", "banking_past", "banking_held_out"),
    ):
        for number in NUMBERS:
            for prior in PRIORS:
                for quantile in QUANTILES if prior == own else (PlanConfig().radius_quantile,):
                    admission.PRIOR_MEMBERS = prior
                    plan = fitted(vectors[past_name], number, quantile)
                    row = {"bank": bank, "num_clusters": len(plan.clusters), "rule": prior}
                    row |= {"quantile": quantile, **rates(plan, vectors[held_out], foreign)}
                    report["rows"].append(row)
                    print(json.dumps(row), flush=True)
    admission.PRIOR_MEMBERS = own
    options.out.parent.mkdir(parents=True, exist_ok=True)
    options.out.write_text(json.dumps(report, indent=1) + "\n")


if __name__ == "__main__":
    main()
