"""A hundred thousand questions from three sets of real ones, and a million vectors around them.

The real texts come first: BANKING77 (train), CLINC150 (banking and cards, train and validation) and
the customer turns of MultiDoGO finance that have five words or more. The rest is recombined: the
first clause of one text is put before the last clause of another of the same intent, so that what
stands together belongs together; a quarter is opened by a MultiDoGO turn instead. Repeated texts
are dropped, and the order is shuffled by a fixed seed, so that a smaller number of questions is a
sample of a larger one.
"""

import csv
import json
import random
import re
from collections import defaultdict
from pathlib import Path

import numpy as np

from centroidkv.types import FloatArray

CLAUSE = re.compile(r"(?<=[.?!,;])\s+|\s+(?=(?:and|but|because|so|when|if|since|after)\s)")
FEWEST_WORDS = 5
SHARE_OPENED_BY_CHAT = 0.25
NOISE = 0.3


def real_texts(data: Path) -> list[tuple[str, str]]:
    """Return (label, text) of all sets; the label names the set and the intent."""
    found: list[tuple[str, str]] = []
    with (data / "banking77/train.csv").open(newline="", encoding="utf-8") as file:
        found += [(f"banking77/{r['category']}", r["text"]) for r in csv.DictReader(file)]
    for name in ("train", "val"):
        with (data / f"clinc150/{name}.jsonl").open(encoding="utf-8") as file:
            rows = [json.loads(line) for line in file]
        found += [(f"clinc150/{r['intent']}", r["text"]) for r in rows]
    for name in ("train", "dev"):
        with (data / f"multidogo_finance/{name}.tsv").open(newline="", encoding="utf-8") as file:
            rows = list(csv.DictReader(file, delimiter="\t", quoting=csv.QUOTE_NONE))
        found += [("multidogo", r["utterance"]) for r in rows]
    clean = [(label, " ".join(text.split())) for label, text in found]
    return [(label, text) for label, text in clean if len(text.split()) >= FEWEST_WORDS]


def questions(data: Path, count: int, *, seed: int = 0) -> list[str]:
    """Return `count` distinct questions, real ones first before the shuffle."""
    chance = random.Random(seed)
    real = real_texts(data)
    texts = dict.fromkeys(text for _, text in real)
    groups: defaultdict[str, list[str]] = defaultdict(list)
    for label, text in real:
        groups[label].append(text)
    chat = groups.pop("multidogo")
    labels = sorted(groups)
    weights = [len(groups[label]) for label in labels]
    while len(texts) < count:
        group = groups[chance.choices(labels, weights)[0]]
        opened = chat if chance.random() < SHARE_OPENED_BY_CHAT else group
        first = CLAUSE.split(chance.choice(opened))[0].rstrip(".?!,; ")
        last = CLAUSE.split(chance.choice(group))[-1]
        texts.setdefault(f"{first}, {last}")
    chosen = list(texts)
    chance.shuffle(chosen)
    return chosen[:count]


def vectors_around(real: FloatArray, count: int, *, seed: int = 0) -> FloatArray:
    """Return unit vectors, [count, dim]: each on the line between two near real ones, plus noise.

    The partner is drawn from the vectors of the same coarse cell, the place between them uniformly
    from [0, 0.5); the noise has three tenths of a vector's length.
    """
    from centroidkv.routing.clustering import nearest_centroid

    chance = np.random.default_rng(seed)
    cells = nearest_centroid(real, real[chance.choice(len(real), 500, replace=False)])
    order = cells.argsort(kind="stable")
    starts = np.searchsorted(cells[order], np.arange(501))
    found = np.empty((count, real.shape[1]), np.float32)
    for begin in range(0, count, 50_000):
        rows = slice(begin, min(count, begin + 50_000))
        size = rows.stop - begin
        one = chance.integers(0, len(real), size)
        low, high = starts[cells[one]], starts[cells[one] + 1]
        other = order[low + (chance.random(size) * (high - low)).astype(np.int64)]
        share = (0.5 * chance.random((size, 1))).astype(np.float32)
        part = real[one] * (1 - share) + real[other] * share
        noise = chance.standard_normal(part.shape).astype(np.float32)
        part += noise * np.float32(NOISE / np.sqrt(real.shape[1]))
        found[rows] = part / np.linalg.norm(part, axis=1, keepdims=True)
    return found
