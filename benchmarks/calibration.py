"""How often a bounded answer cache serves, and how often it is wrong, on BANKING77.

python benchmarks/calibration.py --data ../shared/data --seeds 20 --out calibration.json

Each seed splits the questions into past, calibration and test. A question's candidate is its
nearest past question, right where both have the same intent. The score is fitted on the past
questions' own five neighbours, the threshold on the calibration questions. Doubts: intents are
coarser than answers, one data set, one embedder, and the same intents in all three parts.
"""

import argparse
import csv
import json
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
from machine import machine

from centroidkv.routing.calibration import (
    LabelledPair,
    fit_calibration,
    guarded_scores,
    read_pairs,
)
from centroidkv.routing.pair_conflicts import conflict, words
from centroidkv.routing.pair_features import GROUPS, PairScorer
from centroidkv.routing.risk import fewest_served, find_threshold, upper_limit

BOUNDS = (0.01, 0.02, 0.05)
NUM_PAST, NUM_CALIBRATION, NEIGHBOURS = 4000, 4500, 5
METHODS = ("cosine", "calibrated", "calibrated, noise allowed for")
CLOSE = 0.98  # pairs so near ask the same; where their labels differ, one is wrong
EXAMPLE = Path(__file__).parents[1] / "examples/financial_chatbot/data/question_pairs.csv"
Embed = Callable[[Sequence[str]], np.ndarray]


def main() -> None:
    options = _options()
    bank = _rows(options.data / "banking77/train.csv", ",")
    traps = _traps(options.data)
    example = read_pairs(EXAMPLE)
    pairs = [p for group in traps.values() for p in group] + example
    embed = _embedder([r["text"] for r in bank], pairs, options.vectors)
    texts, intents = [r["text"] for r in bank], np.array([r["category"] for r in bank])
    found = noise(texts, intents, embed)
    noisy = found[f"cosine from {CLOSE}"]["disagree"]
    fixed: dict[str, object] = {
        "machine": machine(),
        "label_noise": found,
        "example_bank": example_bank(example, embed),
    }
    runs = []
    for seed in range(options.seeds):
        kept = options.parts and options.parts / f"seed-{seed}.json"
        if kept and kept.exists():
            runs.append(json.loads(kept.read_text()) | {"seed": seed})
            continue
        if options.kept_only:
            continue
        asked = {"seed": seed, "features": seed < options.features, "noisy": noisy}
        runs.append(run(texts, intents, embed, traps, **asked) | {"seed": seed})
        print(f"seed {seed}", json.dumps(summary(runs[-1:])), flush=True)
        if kept:
            kept.write_text(json.dumps(runs[-1]))
        # After each seed, so that a run that is cut short leaves what it has.
        options.out.write_text(json.dumps(fixed | told(runs), indent=1) + "\n")
    options.out.write_text(json.dumps(fixed | told(runs), indent=1) + "\n")


def told(runs: list[dict]) -> dict[str, object]:
    traps = {m: {k: _added(runs, m, k) for k in runs[0]["traps"][m]} for m in METHODS}
    return {
        "seeds": [r["seed"] for r in runs],
        "bounds": summary(runs),
        "traps": traps,
        "features": ablation(runs),
    }


def run(
    texts: list[str],
    intents: np.ndarray,
    embed: Embed,
    traps: dict[str, list[LabelledPair]],
    *,
    seed: int,
    features: bool,
    noisy: float,
) -> dict[str, dict]:
    order = np.random.default_rng(seed).permutation(len(texts))
    past, rest = order[:NUM_PAST], order[NUM_PAST:]
    learn = neighbours(past, past, texts, intents, embed)
    calibration = neighbours(rest[:NUM_CALIBRATION], past, texts, intents, embed)
    test = neighbours(rest[NUM_CALIBRATION:], past, texts, intents, embed)
    fit = fit_calibration(calibration, embed, embedder_fingerprint="", past_pairs=learn)
    same = np.array([p.same_answer for p in calibration])
    known = cosine(calibration, embed)
    limits = {b: find_threshold(known, same, b).threshold for b in BOUNDS}
    thresholds = {
        METHODS[0]: limits,
        METHODS[1]: {b: fit.threshold(b) for b in BOUNDS},
        METHODS[2]: {b: fit.threshold(b + noisy) for b in BOUNDS},
    }
    result: dict[str, dict] = {m: {} for m in METHODS} | {"traps": {}, "features": {}}
    asked = {"test": test} | traps
    plain = {k: cosine(p, embed) for k, p in asked.items()}
    fitted = {k: guarded_scores(fit.scorer, p, *ends(p, embed)) for k, p in asked.items()}
    close = plain["test"] >= CLOSE
    for method, chosen in thresholds.items():
        scores = plain if method == "cosine" else fitted
        for bound in BOUNDS:
            served = scores["test"] >= limit(chosen[bound])
            closest = {f"{k} closest": n for k, n in counts(served & close, test).items()}
            result[method][str(bound)] = counts(served, test) | closest
        result["traps"][method] = {
            f"{k} at {b}": counts(scores[k] >= limit(chosen[b]), p)
            for k, p in traps.items()
            for b in BOUNDS
        }
    if features:
        result["features"] = worth(learn, calibration, fit.scores, embed)
    return result


def worth(
    learn: list[LabelledPair], asked: list[LabelledPair], guarded: np.ndarray, embed: Embed
) -> dict[str, list[float]]:
    """Return what could be served on the calibration questions with some of the features."""
    sets = {"all": GROUPS} | {f"only {g}": (g,) for g in GROUPS}
    sets |= {f"without {g}": tuple(o for o in GROUPS if o != g) for g in GROUPS}
    own, right = ends(asked, embed), np.array([p.same_answer for p in learn])
    raw, rows = PairScorer.prepare(learn, *ends(learn, embed), with_neighbours=True)
    scores = {k: raw.regress(rows, right, g).score(asked, *own) for k, g in sets.items()}
    scores |= {"cosine, no fit": cosine(asked, embed), "all, with vetoes": guarded}
    same = np.array([p.same_answer for p in asked])
    return {k: [reach(s, same, b) for b in BOUNDS] for k, s in scores.items()}


def neighbours(
    asked: np.ndarray, past: np.ndarray, texts: list[str], intents: np.ndarray, embed: Embed
) -> list[LabelledPair]:
    """Pair each question with its nearest past one, or past ones with several of their own."""
    own = asked is past
    near = embed([texts[i] for i in asked]) @ embed([texts[i] for i in past]).T
    if own:
        np.fill_diagonal(near, -np.inf)
    picked = past[np.argsort(-near, axis=1)[:, : NEIGHBOURS if own else 1]]
    return [
        LabelledPair(texts[a], texts[b], bool(intents[a] == intents[b]))
        for a, row in zip(asked, picked, strict=True)
        for b in row
    ]


def limit(threshold: float | None) -> float:
    return np.inf if threshold is None else threshold


def reach(scores: np.ndarray, same: np.ndarray, bound: float) -> float:
    """Return the largest share that could be served at `bound`, were the labels known."""
    order = np.argsort(-scores, kind="stable")[: int(np.isfinite(scores).sum())]
    counted = np.arange(1, len(order) + 1)
    kept = np.flatnonzero((np.cumsum(~same[order]) <= bound * counted) & (counted >= 100))
    return float((kept[-1] + 1) / len(scores)) if len(kept) else 0.0


def counts(served: np.ndarray, pairs: list[LabelledPair]) -> dict[str, int]:
    wrong = int(sum(s and not p.same_answer for s, p in zip(served, pairs, strict=True)))
    return {"asked": len(pairs), "served": int(served.sum()), "wrong": wrong}


def summary(runs: list[dict]) -> dict[str, dict]:
    result: dict[str, dict] = {}
    for method in METHODS:
        for bound in map(str, BOUNDS):
            rows = [r[method][bound] for r in runs]
            asked, served, wrong = (sum(r[k] for r in rows) for k in ("asked", "served", "wrong"))
            over = sum(lower_limit(r["wrong"], r["served"]) > float(bound) for r in rows)
            result[f"{method} at {bound}"] = {
                "hit_rate": served / asked, "wrong_hit_rate": wrong / served if served else None,
                "served": served, "wrong": wrong,
                "served_closest": sum(r["served closest"] for r in rows),
                "wrong_closest": sum(r["wrong closest"] for r in rows),
                "seeds_lower_limit_above_bound": over,
                "seeds_serving": sum(r["served"] > 0 for r in rows),
            }  # fmt: skip
    return result


def lower_limit(wrong: int, served: int) -> float:
    return 1 - upper_limit(served - wrong, served) if served else 0.0


def ablation(runs: list[dict]) -> dict[str, list[float]]:
    rows = [r["features"] for r in runs if r["features"]]
    names = rows[0] if rows else {}
    return {k: np.mean([r[k] for r in rows], axis=0).round(3).tolist() for k in names}


def noise(texts: list[str], intents: np.ndarray, embed: Embed) -> dict[str, dict[str, float]]:
    """Count how often extremely close pairs disagree: mostly labels, not questions, differ."""
    vectors = embed(texts)
    near = vectors @ vectors.T
    result = {}
    for low, high in ((CLOSE, 1.01), (0.96, 0.98), (0.94, 0.96)):
        one, other = np.nonzero(np.triu((near >= low) & (near < high), 1))
        differ = intents[one] != intents[other]
        result[f"cosine from {low}"] = {"pairs": len(one), "disagree": float(differ.mean())}
    return result


def example_bank(pairs: list[LabelledPair], embed: Embed) -> dict[str, object]:
    fit = fit_calibration(pairs, embed, embedder_fingerprint="")
    return {
        "report": [str(b) for b in fit.report((*BOUNDS, 0.1, 0.2))],
        "needed_without_a_mistake": {str(b): fewest_served(b) for b in (*BOUNDS, 0.1, 0.2)},
    }


def ends(pairs: list[LabelledPair], embed: Embed) -> tuple[np.ndarray, np.ndarray]:
    return embed([p.question for p in pairs]), embed([p.candidate for p in pairs])


def cosine(pairs: list[LabelledPair], embed: Embed) -> np.ndarray:
    u, v = ends(pairs, embed)
    return np.einsum("ij,ij->i", u, v).astype(np.float64)


def _added(runs: list[dict], method: str, trap: str) -> dict[str, int]:
    rows = [r["traps"][method][trap] for r in runs]
    return {k: sum(r[k] for r in rows) for k in rows[0]}


def _traps(folder: Path) -> dict[str, list[LabelledPair]]:
    """Read the traps; an exact negation is a pair whose words differ in negations alone."""
    found = {"banking77 near pairs": [
        LabelledPair(r["text_a"], r["text_b"], r["same_intent"] == "1")
        for r in _rows(folder / "banking77/near_pairs_train.tsv", "\t")
    ]}  # fmt: skip
    for path in sorted((folder / "negation").glob("*.tsv")):
        rows = _rows(path, "\t")
        found[path.stem] = [
            LabelledPair(r["sentence"], r["negated"], same_answer=False) for r in rows
        ]
    every = [p for k, ps in found.items() if not k.startswith("banking") for p in ps]
    found["exact negations"] = [p for p in every if _bare(p.question) == _bare(p.candidate)]
    found["negation or opposite found"] = [
        p for p in every if conflict(words(p.question), words(p.candidate))
    ]
    return found


def _bare(text: str) -> list[str]:
    dropped = {"not", "no", "never", "do", "does", "did", "ca", "wo", "any", "a"}
    return sorted(w.removesuffix("s") for w in words(text) if w not in dropped)


def _rows(path: Path, delimiter: str) -> list[dict[str, str]]:
    quoting = csv.QUOTE_NONE if delimiter == "\t" else csv.QUOTE_MINIMAL
    with path.open(newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file, delimiter=delimiter, quoting=quoting))


def _embedder(texts: list[str], pairs: list[LabelledPair], kept: Path | None) -> Embed:
    every = {*texts, *(t for p in pairs for t in (p.question, p.candidate))}
    known: list[str] = []
    vectors = np.empty((0, 0), np.float32)
    if kept and kept.exists():
        stored = np.load(kept)
        known, vectors = json.loads(stored["texts"].tobytes()), stored["vectors"]
    if lacking := sorted(every - set(known)):
        from centroidkv.routing.embedder import SentenceBertEmbedder

        new = SentenceBertEmbedder.load("bundled:minilm").embed(lacking)
        known, vectors = [*known, *lacking], np.vstack([vectors, new]) if known else new
        if kept:
            as_bytes = np.frombuffer(json.dumps(known).encode(), np.uint8)
            np.savez(kept, texts=as_bytes, vectors=vectors)
    place = {text: i for i, text in enumerate(known)}
    return lambda asked: vectors[[place[t] for t in asked]]


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data", type=Path, default=Path("../shared/data"))
    parser.add_argument("--seeds", type=int, default=20)
    parser.add_argument("--features", type=int, default=2, help="seeds with the feature table")
    parser.add_argument("--vectors", type=Path, help="npz file to keep the vectors in")
    parser.add_argument("--parts", type=Path, help="folder to keep each seed's counts in")
    parser.add_argument("--kept-only", action="store_true", help="only seeds kept in --parts")
    parser.add_argument("--out", type=Path, default=Path("benchmarks/results/calibration.json"))
    return parser.parse_args()


if __name__ == "__main__":
    main()
