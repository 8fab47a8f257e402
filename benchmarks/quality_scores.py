"""How good an answer is, and how sure a difference between two ways of asking is.

Knows answers and gold texts alone.
"""

import re
import string
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

MARGIN = -0.02
RESAMPLES = 10_000


def normalised(text: str) -> list[str]:
    """Return the words as SQuAD's evaluation compares them."""
    plain = "".join(c for c in text.lower() if c not in string.punctuation)
    return re.sub(r"\b(a|an|the)\b", " ", plain).split()


def token_f1(answer: str, gold: str) -> float:
    """Return the F1 of the words that answer and gold share (Rajpurkar et al., 2016)."""
    said, meant = normalised(answer), normalised(gold)
    if not said or not meant:
        return float(said == meant)
    shared = sum((Counter(said) & Counter(meant)).values())
    return 2 * shared / (len(said) + len(meant))


def is_exact(answer: str, gold: str) -> bool:
    return normalised(answer) == normalised(gold)


@dataclass(frozen=True, slots=True)
class Difference:
    """The mean of paired differences and its 95 % bootstrap interval."""

    mean: float
    low: float
    high: float
    num: int

    @property
    def verdict(self) -> str:
        """Say whether F1 holds to within two points, falls, or whether that is open."""
        if self.low >= MARGIN:
            return "holds"
        return "falls" if self.high < 0 else "inconclusive"


def bootstrap(
    differences: Sequence[float], groups: Sequence[str] | None = None, *, seed: int = 0
) -> Difference:
    """Resample questions, or whole groups of them where questions of one origin are alike."""
    values = np.asarray(differences, float)
    names = list(groups) if groups is not None else [str(i) for i in range(len(values))]
    _, place = np.unique(names, return_inverse=True)
    sums, counts = np.bincount(place, values), np.bincount(place)
    random = np.random.default_rng(seed)
    drawn = random.integers(len(sums), size=(RESAMPLES, len(sums)))
    means = sums[drawn].sum(1) / counts[drawn].sum(1)
    low, high = np.quantile(means, [0.025, 0.975])
    return Difference(float(values.mean()), float(low), float(high), len(values))
