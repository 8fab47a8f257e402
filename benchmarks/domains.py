"""What a first routing level by domain does to coverage, against one flat plan of the same size.

python benchmarks/domains.py --data ../shared/data --seeds 5

Per data set and seed: past and unseen questions, the same number of clusters flat and shared out
to the domains, and of the base retriever's top 4 the share that lies in the pins of the cluster a
question is routed to (admission not counted). `given`: the request names its domain. `learnt`:
the nearest of all centroids decides. `few labels`: one past question in five has its domain, the
others learn it from their neighbours, and the request names its own.

BANKING77 has 77 intents and no domains; the first rule of RULES that an intent's name matches
gives it one of nine. Doubts: so a request's domain is as good as the intent's label, about 4 % of
which are wrong; the bank's domains are those its questions were written for.
"""

import argparse
import csv
import json
import re
import time
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import bank
import numpy as np
from machine import machine

from centroidkv.config import EngineConfig
from centroidkv.opening import open_embedder
from centroidkv.plan_config import PlanConfig
from centroidkv.routing.clustering import nearest_centroid
from centroidkv.routing.domains import complete_domains
from centroidkv.routing.history import Seen
from centroidkv.routing.plan import Plan
from centroidkv.types import FloatArray, Passage
from centroidkv.versions.fitting import fit_plan

RESULTS = Path(__file__).parent / "results/domains.json"
RULES = {
    "virtual cards": "virtual|disposable",
    "top-ups": "top_up|topping_up",
    "cash": "cash|atm",
    "currencies": "exchange|currenc|country",
    "transfers": "transfer|beneficiary|receiving_money|direct_debit",
    "identity": "verify|identity|personal_details|age_limit|terminate_account",
    "security": "pin|passcode|phone|compromised|lost_or_stolen",
    "payments": "payment|refund|charge",
    "cards": "",
}
LABELLED = 0.2
DEPTH, TOP = 16, 4


@dataclass(frozen=True, slots=True)
class Asked:
    """Questions with vectors [n, dim], domains, and the positions of what each one retrieves."""

    texts: list[str]
    vectors: FloatArray
    domains: list[str]
    found: np.ndarray
    passages: list[Passage]
    tokens: dict[str, int]

    def part(self, rows: np.ndarray) -> "Asked":
        return Asked(
            [self.texts[i] for i in rows],
            self.vectors[rows],
            [self.domains[i] for i in rows],
            self.found[rows],
            self.passages,
            self.tokens,
        )


def main() -> None:
    options = _options()
    embed = _embedder(options.vectors)
    result: dict[str, object] = {"machine": machine()}
    of_bank = _bank(embed)
    sets = {f"example bank, {k} clusters": (of_bank, 991, k, 10) for k in (24, 48, 96)}
    sets["BANKING77"] = (_banking77(options.data, embed), 3000, 200, 8)
    for name, (asked, num_past, clusters, pins) in sets.items():
        rows = []
        for seed in range(options.first, options.first + options.seeds):
            order = np.random.default_rng(seed).permutation(len(asked.texts))
            past = asked.part(order[:num_past])
            unseen = asked.part(order[num_past : num_past + 1500])
            rows.append(compare(past, unseen, clusters=clusters, pins=pins, seed=seed))
            print(name, seed, json.dumps(rows[-1]["top 4"]), flush=True)
            result[name] = {
                "domains": dict(Counter(asked.domains)),
                "past": num_past,
                "unseen": len(unseen.texts),
                "clusters": clusters,
                "max_pins": pins,
                "summary": summary(rows),
                "seeds": rows,
            }
            options.out.write_text(json.dumps(result, indent=1, default=float) + "\n")
        print(name, json.dumps(summary(rows), indent=1, default=float))


def compare(past: Asked, unseen: Asked, *, clusters: int, pins: int, seed: int) -> dict:
    """Fit flat and by domain, and route the unseen questions in each way."""
    random = np.random.default_rng(1000 + seed)
    is_labelled = random.random(len(past.texts)) < LABELLED
    few = [d if known else "" for d, known in zip(past.domains, is_labelled, strict=True)]
    config = PlanConfig(num_clusters=clusters, max_pins=pins, max_pin_tokens=1600)
    plans: dict[str, tuple[Plan, list[str] | None]] = {}
    seconds = {}
    for name, domains in (("flat", None), ("domains", past.domains), ("few", few)):
        begin = time.perf_counter()
        plans[name] = (fit(past, config, domains), domains)
        seconds[name] = time.perf_counter() - begin
    ways = {
        "flat": routed(plans["flat"][0], unseen, given=False),
        "given": routed(plans["domains"][0], unseen, given=True),
        "learnt": routed(plans["domains"][0], unseen, given=False),
        "few labels, given": routed(plans["few"][0], unseen, given=True),
    }
    learnt = complete_domains(past.vectors, few)
    wrong = [a != b for a, b, known in zip(learnt, past.domains, is_labelled, strict=True)
             if not known]  # fmt: skip
    settled = [plans["domains"][0].clusters[c].domain for c in ways["learnt"]["clusters"]]
    flat = ways["flat"]["covered"]
    return {
        "top 4": {n: float(w["covered"].mean()) for n, w in ways.items()},
        "best": {n: float(w["covered"][:, 0].mean()) for n, w in ways.items()},
        "gain": {n: _interval(w["covered"].mean(1) - flat.mean(1)) for n, w in ways.items()},
        "admitted": {n: w["admitted"] for n, w in ways.items()},
        "pinned_tokens": {n: pinned_tokens(p, past.tokens) for n, (p, _) in plans.items()},
        "clusters": {n: len(p.clusters) for n, (p, _) in plans.items()},
        "fit_s": seconds,
        "domain right, learnt at the request": float(np.mean(np.array(settled) == unseen.domains)),
        "domain right, learnt at the build": 1 - float(np.mean(wrong)),
    }


def fit(past: Asked, config: PlanConfig, domains: list[str] | None) -> Plan:
    ids = [p.id for p in past.passages]
    seen = [
        Seen(q, v, tuple(ids[i] for i in f))
        for q, v, f in zip(past.texts, past.vectors, past.found, strict=True)
    ]
    by_text = {p.text: past.tokens[p.id] for p in past.passages}
    return fit_plan(
        seen,
        {p.id: p for p in past.passages},
        config,
        namespace="0" * 64,
        count_tokens=by_text.__getitem__,
        domains=dict(zip(past.texts, domains, strict=True)) if domains else None,
    )


def routed(plan: Plan, unseen: Asked, *, given: bool) -> dict:
    """Route by the nearest centroid, of the given domain or of all; tell what the pins cover."""
    reduced, centroids = plan.projection.transform(unseen.vectors), plan.reduced()
    serving = [(c.domain, *c.guests) for c in plan.clusters]
    nearest = nearest_centroid(reduced, centroids)
    for domain in set(unseen.domains) if given else ():
        rows = np.array([d == domain for d in unseen.domains])
        own = np.flatnonzero([domain in served for served in serving])
        nearest[rows] = own[nearest_centroid(reduced[rows], centroids[own])]
    ids = [p.id for p in unseen.passages]
    chosen = [plan.clusters[c] for c in nearest]
    covered = [
        [ids[i] in c.pins for i in f[:TOP]] for c, f in zip(chosen, unseen.found, strict=True)
    ]
    far = [float(np.linalg.norm(v - c.centroid)) <= c.radius
           for v, c in zip(unseen.vectors, chosen, strict=True)]  # fmt: skip
    return {"covered": np.array(covered), "admitted": float(np.mean(far)), "clusters": nearest}


def pinned_tokens(plan: Plan, tokens: dict[str, int]) -> int:
    """Count the tokens of all pinned prefixes, what several clusters begin with once."""
    prefixes = {c.pins[:n] for c in plan.clusters for n in range(1, len(c.pins) + 1)}
    return sum(tokens[p[-1]] for p in prefixes)


def summary(rows: Sequence[dict]) -> dict:
    """Average over the seeds; the interval of a gain is that of the seeds' mean differences."""
    ways = rows[0]["top 4"]
    return {
        "top 4": {w: round(np.mean([r["top 4"][w] for r in rows]), 4) for w in ways},
        "best": {w: round(np.mean([r["best"][w] for r in rows]), 4) for w in ways},
        "gain over flat": {w: [round(r["gain"][w]["mean"], 4) for r in rows] for w in ways},
        "admitted": {w: round(np.mean([r["admitted"][w] for r in rows]), 4) for w in ways},
        "pinned_tokens": {
            p: int(np.mean([r["pinned_tokens"][p] for r in rows])) for p in rows[0]["pinned_tokens"]
        },
        **{
            name: round(np.mean([r[name] for r in rows]), 4)
            for name in rows[0]
            if name.startswith("domain right")
        },
    }


def _interval(differences: np.ndarray) -> dict[str, float]:
    """Return the mean of paired differences with its bootstrap 95 % interval."""
    random = np.random.default_rng(0)
    drawn = random.choice(differences, (2000, len(differences))).mean(1)
    low, high = np.quantile(drawn, [0.025, 0.975])
    return {"mean": float(differences.mean()), "low": float(low), "high": float(high)}


def _bank(embed: Callable[[Sequence[str]], FloatArray]) -> Asked:
    past = bank.past_questions()
    passages = [Passage.of(d.page_content) for d in bank.documents()]
    return _asked([q["question"] for q in past], [q["domain"] for q in past], passages, embed)


def _banking77(data: Path, embed: Callable[[Sequence[str]], FloatArray]) -> Asked:
    with (data / "banking77/train.csv").open(encoding="utf-8", newline="") as file:
        rows = {r["text"]: r["category"] for r in csv.DictReader(file)}
    lines = (data / "ask_cfpb/passages.jsonl").read_text("utf-8").splitlines()
    passages = [Passage.of(f"{r['question']}\n{r['answer']}") for r in map(json.loads, lines)]
    domains = [next(d for d, rule in RULES.items() if re.search(rule, c.lower()))
               for c in rows.values()]  # fmt: skip
    return _asked(list(rows), domains, list({p.id: p for p in passages}.values()), embed)


def _asked(
    texts: list[str],
    domains: list[str],
    passages: list[Passage],
    embed: Callable[[Sequence[str]], FloatArray],
) -> Asked:
    vectors, base = embed(texts), embed([p.text for p in passages])
    found = np.argsort(-(vectors @ base.T), axis=1, kind="stable")[:, :DEPTH]
    # Four letters a token: near enough for a budget, and the same for all that is compared.
    tokens = {p.id: len(p.text) // 4 for p in passages}
    return Asked(texts, vectors, domains, found, passages, tokens)


def _embedder(kept: Path | None) -> Callable[[Sequence[str]], FloatArray]:
    """Return an embedding function that keeps its vectors in a file."""
    embedder = open_embedder("bundled:minilm", EngineConfig())
    known: dict[str, FloatArray] = {}
    if kept and kept.exists():
        with np.load(kept, allow_pickle=False) as held:
            known = dict(zip(held["texts"].tolist(), held["vectors"], strict=True))

    def embed(texts: Sequence[str]) -> FloatArray:
        new = [t for t in dict.fromkeys(texts) if t not in known]
        if new:
            known.update(zip(new, embedder.embed(new), strict=True))
            if kept:
                np.savez(kept, texts=np.array(list(known)), vectors=np.stack(list(known.values())))
        return np.stack([known[t] for t in texts])

    return embed


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", type=Path, default=Path("../shared/data"))
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--first", type=int, default=100, help="0 to 7 were looked at before")
    parser.add_argument("--vectors", type=Path, help="npz file to keep the vectors in")
    parser.add_argument("--out", type=Path, default=RESULTS)
    return parser.parse_args()


if __name__ == "__main__":
    main()
