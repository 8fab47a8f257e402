"""What is kept of a chat log, and what is masked in it, on MultiDoGO finance.

python benchmarks/chat_logs.py --data ../shared/data --split dev

Kept turns are held against the intent column, masks against the slot labels; neither is shown to
the code. A question is a turn with one of ten intents that ask for something. `outofdomain` turns
hold both ("i need an education loan", "hm") and are counted apart. Doubts: the threshold, the
examples and the masks were chosen on train; the labels are noisy ("hi" is labelled a transfer,
"thank you can you tell me about the new lower rates" a thank-you), so the last points of either
figure are theirs; and this is one log of one business.
"""

import argparse
import csv
import json
from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path

import numpy as np
from machine import machine

from centroidkv.config import EngineConfig
from centroidkv.opening import open_embedder
from centroidkv.preparing.chat_logs import read_chat_log
from centroidkv.preparing.sifting import sift, why_dropped
from centroidkv.redaction import mask_personal
from centroidkv.types import FloatArray

RESULTS = Path(__file__).parent / "results/chat_logs.json"
QUESTIONS = {
    "checkbalance", "checkoffereligibility", "closeaccount", "disputecharge", "getroutingnumber",
    "orderchecks", "replacecard", "reportlostcard", "transfermoney", "updateaddress",
}  # fmt: skip
SLOTS = ("card_number", "ssn", "account_number", "target_account_number", "name", "address")


def main() -> None:
    options = _options()
    path = options.data / f"multidogo_finance/{options.split}.tsv"
    with path.open(encoding="utf-8", newline="") as file:
        rows = list(csv.DictReader(file, delimiter="\t", quoting=csv.QUOTE_NONE))
    rows = [r for r in rows if r["intent"] and (r["utterance"] or "").strip()]
    embedder = Kept(options.vectors)
    turns = read_chat_log(path)
    sifted = sift(turns, embedder)
    masked = [mask_personal(r["utterance"]) for r in rows]
    distinct = dict.fromkeys(" ".join(m.split()) for m in masked)
    reasons = dict(zip(distinct, why_dropped(list(distinct), embedder), strict=True))
    kept = np.array([not reasons[" ".join(m.split())] for m in masked])
    result = {
        "machine": machine(),
        "split": options.split,
        "turns": scores(rows, kept),
        "sifted": asdict(sifted.report),
        "slots": slots(rows, masked, kept),
        "words outside slots that are masked": spoilt(rows, masked),
    }
    held = json.loads(options.out.read_text()) if options.out.exists() else {}
    held[options.split] = result
    options.out.write_text(json.dumps(held, indent=1) + "\n")
    print(json.dumps(result, indent=1))


def scores(rows: Sequence[dict[str, str]], kept: np.ndarray) -> dict:
    """Return precision and recall over all turns, and the share kept of every intent."""
    intents = [set(r["intent"].split("<div>")) for r in rows]
    asks = np.array([bool(i & QUESTIONS) for i in intents])
    counted = np.array([i != {"outofdomain"} for i in intents])
    right = int((kept & asks).sum())
    by_intent = Counter(r["intent"] for r in rows)
    kept_by = Counter(r["intent"] for r, k in zip(rows, kept, strict=True) if k)
    return {
        "questions": int(asks.sum()),
        "others": int((counted & ~asks).sum()),
        "kept": int(kept.sum()),
        "precision": right / int((kept & counted).sum()),
        "precision, out of domain counted as wrong": right / int(kept.sum()),
        "recall": right / int(asks.sum()),
        "kept of": {i: round(kept_by[i] / n, 3) for i, n in by_intent.most_common() if n >= 5},
    }


def slots(rows: Sequence[dict[str, str]], masked: Sequence[str], kept: np.ndarray) -> dict:
    """Return the share of the values' words that are masked, and what is left in kept turns."""
    words: Counter[str] = Counter()
    gone: Counter[str] = Counter()
    left: Counter[str] = Counter()
    for row, text, is_kept in zip(rows, masked, kept, strict=True):
        rest = Counter(text.split())
        tokens = row["utterance"].split()
        labels = row["slot-labels"].split()
        if len(tokens) != len(labels):
            continue
        for token, label in zip(tokens, labels, strict=True):
            if label in SLOTS:
                words[label] += 1
                gone[label] += rest[token] == 0
                left[label] += int(is_kept and rest[token] > 0)
    return {
        slot: {
            "words": words[slot],
            "masked": round(gone[slot] / max(1, words[slot]), 4),
            "left in kept turns": left[slot],
        }
        for slot in SLOTS
    }


def spoilt(rows: Sequence[dict[str, str]], masked: Sequence[str]) -> float:
    """Return the share of words outside any slot that a mask has taken."""
    outside = taken = 0
    for row, text in zip(rows, masked, strict=True):
        rest, labels = Counter(text.split()), row["slot-labels"].split()
        tokens = row["utterance"].split()
        if len(tokens) == len(labels):
            words = [t for t, label in zip(tokens, labels, strict=True) if label == "O"]
            outside += len(words)
            taken += sum(rest[w] == 0 for w in words)
    return round(taken / outside, 4)


class Kept:
    """An embedder that keeps its vectors in a file, if there is one."""

    def __init__(self, path: Path | None) -> None:
        self._embedder = open_embedder("bundled:minilm", EngineConfig())
        self.fingerprint = self._embedder.fingerprint
        self._path = path
        self._known: dict[str, FloatArray] = {}
        if path and path.exists():
            with np.load(path, allow_pickle=False) as held:
                self._known = dict(zip(held["t"].tolist(), held["v"], strict=True))

    def embed(self, texts: Sequence[str]) -> FloatArray:
        new = [t for t in dict.fromkeys(texts) if t not in self._known]
        if new:
            self._known.update(zip(new, self._embedder.embed(new), strict=True))
            if self._path:
                np.savez(
                    self._path, t=np.array(list(self._known)), v=np.stack([*self._known.values()])
                )
        return np.stack([self._known[t] for t in texts])


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", type=Path, default=Path("../shared/data"))
    parser.add_argument("--split", default="dev", choices=["train", "dev"])
    parser.add_argument("--vectors", type=Path, help="npz file to keep the vectors in")
    parser.add_argument("--out", type=Path, default=RESULTS)
    return parser.parse_args()


if __name__ == "__main__":
    main()
