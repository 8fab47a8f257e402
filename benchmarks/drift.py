"""What a refit gains when the questions have changed since the build.

python benchmarks/drift.py --data ../shared/data

BANKING77 questions over the Ask-CFPB passages, MiniLM. Built from questions of 60 of the 77
intents; then traffic of all 77, half of it logged, the other half held out and measured on.
"""

import argparse
import csv
import json
from pathlib import Path

import numpy as np
from machine import machine

from centroidkv.config import EngineConfig
from centroidkv.opening import open_embedder
from centroidkv.plan_config import PlanConfig
from centroidkv.preparing.refit import suits
from centroidkv.routing.history import Asked, Seen
from centroidkv.types import Passage
from centroidkv.versions.fitting import fit_plan

RESULTS = Path(__file__).parent / "results" / "drift.json"
PAST, LOGGED, HELD_OUT = 1500, 1000, 1000
SEEDS = (0, 1, 2, 3, 4)
LIVE_DEPTH, BUILD_DEPTH = 4, 16


def embedded(name: str, texts: list[str], cache: Path) -> np.ndarray:
    path = cache / f"drift_{name}.npz"
    if not path.exists():
        vectors = open_embedder("bundled:minilm", EngineConfig()).embed(texts)
        cache.mkdir(exist_ok=True)
        np.savez(path, vectors=vectors)
    return np.load(path)["vectors"]


def asked(seen: Seen, *, is_built: bool = False) -> Asked:
    return Asked(seen, 0 if is_built else 1, 0.0, is_built=is_built, domain="")


def one_seed(seed: int, world: dict) -> dict[str, dict[str, float]]:
    random = np.random.default_rng(seed)
    intents, ranked, vectors = world["intents"], world["ranked"], world["vectors"]
    known = set(random.permutation(np.unique(intents))[:60])
    order = random.permutation(len(intents))
    past = [i for i in order if intents[i] in known][:PAST]
    rest = [i for i in order if i not in set(past)]
    logged, held_out = rest[:LOGGED], rest[LOGGED : LOGGED + HELD_OUT]

    def seen(i: int, depth: int) -> Seen:
        ids = tuple(world["ids"][j] for j in ranked[i, :depth])
        return Seen(world["questions"][i], vectors[i], ids)

    built = [seen(i, BUILD_DEPTH) for i in past]
    recipes = {
        "as built": built,
        "as built, as many clusters as after": built,
        "refit from the log": [*built, *(seen(i, LIVE_DEPTH) for i in logged)],
        "refit, retriever asked anew": [*built, *(seen(i, BUILD_DEPTH) for i in logged)],
        "built from the log alone": [seen(i, BUILD_DEPTH) for i in logged],
    }
    results = {}
    for name, questions in recipes.items():
        plan = fit_plan(
            questions,
            world["passages"],
            PlanConfig(num_clusters=(PAST + LOGGED) // 10 if "as many" in name else None),
            namespace="0" * 64,
            count_tokens=lambda text: len(text) // 4,
        )
        row: dict[str, float] = {"clusters": len(plan.clusters)}
        for part, of_part in (
            ("all", held_out),
            ("known intents", [i for i in held_out if intents[i] in known]),
            ("new intents", [i for i in held_out if intents[i] not in known]),
        ):
            fit = suits(plan, [asked(seen(i, LIVE_DEPTH)) for i in of_part], world["texts"])
            row[f"admitted, {part}"] = fit.admitted
            row[f"covered, {part}"] = fit.covered
        results[name] = row
    return results


def load(data: Path, cache: Path) -> dict:
    with (data / "banking77/train.csv").open(encoding="utf-8", newline="") as file:
        rows = list({r["text"]: r["category"] for r in csv.DictReader(file)}.items())
    lines = (data / "ask_cfpb/passages.jsonl").read_text("utf-8").splitlines()
    texts = [f"{p['question']}\n{p['answer']}" for p in map(json.loads, lines)]
    passages = [Passage.of(t) for t in texts]
    vectors = embedded("banking77", [q for q, _ in rows], cache)
    base = embedded("cfpb", texts, cache)
    return {
        "questions": [q for q, _ in rows],
        "intents": np.array([c for _, c in rows]),
        "vectors": vectors,
        "ranked": np.argsort(-(vectors @ base.T), axis=1, kind="stable")[:, :BUILD_DEPTH],
        "ids": [p.id for p in passages],
        "passages": {p.id: p for p in passages},
        "texts": {p.id: p.text for p in passages},
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data", type=Path, default=Path("../shared/data"))
    parser.add_argument("--cache", type=Path, default=Path("/tmp/centroidkv-cache"))
    parser.add_argument("--seeds", type=int, nargs="+", default=list(SEEDS))
    options = parser.parse_args()
    world = load(options.data, options.cache)
    seeds = {seed: one_seed(seed, world) for seed in options.seeds}
    first = seeds[options.seeds[0]]
    names, columns = list(first), list(next(iter(first.values())))
    print("mean of", len(seeds), "seeds;", ", ".join(columns))
    for name in names:
        values = [np.mean([found[name][c] for found in seeds.values()]) for c in columns]
        print(f"{name:30}", " ".join(f"{v:8.3f}" for v in values))
    RESULTS.write_text(json.dumps({"machine": machine(), "seeds": seeds}, indent=1) + "\n")


if __name__ == "__main__":
    main()
