"""Thresholds with a guarantee: exact binomial limits and fixed-sequence testing.

Knows scores and mistakes, not what they were computed from. Sources: C. J. Clopper and
E. S. Pearson, "The use of confidence or fiducial limits illustrated in the case of the binomial"
(Biometrika 26, 1934); A. N. Angelopoulos et al., "Learn then Test: calibrating predictive
algorithms to achieve risk control" (arXiv:2110.01052, section 2.2, fixed-sequence testing).
"""

import math
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from centroidkv.errors import ConfigError

__all__ = ["CONFIDENCE", "Bound", "fewest_served", "find_threshold", "upper_limit"]

CONFIDENCE = 0.95
# The first test serves this share of the pairs where that is enough, so that one wrong label among
# the closest pairs does not end the sequence. It depends on their number, not their labels.
_START_SHARE = 0.20
_STEP = 1.05


@dataclass(frozen=True, slots=True)
class Bound:
    """The loosest threshold that keeps `max_error`, and the labels it rests on.

    `threshold` is None where no threshold keeps the bound; then nothing is served.
    """

    max_error: float
    threshold: float | None
    num_pairs: int
    num_served: int
    num_wrong: int
    upper_limit: float

    def __str__(self) -> str:
        if self.threshold is None:
            need = fewest_served(self.max_error)
            return (
                f"at most {self.max_error:.1%} wrong: nothing is served; {self.num_pairs} labelled "
                f"pairs show no threshold that keeps the bound (it takes {need} pairs served "
                "without a mistake, or more with some)"
            )
        return (
            f"at most {self.max_error:.1%} wrong: {self.num_served} of {self.num_pairs} served, "
            f"{self.num_wrong} wrong, 95 % upper limit {self.upper_limit:.2%}"
        )


def upper_limit(wrong: int, served: int, *, confidence: float = CONFIDENCE) -> float:
    """Return the one-sided upper Clopper-Pearson limit of an error rate, 1.0 for no trials."""
    if wrong >= served:
        return 1.0
    low, high = wrong / served, 1.0
    for _ in range(60):
        middle = (low + high) / 2
        if _at_most(wrong, served, middle) > 1 - confidence:
            low = middle
        else:
            high = middle
    return high


def fewest_served(max_error: float) -> int:
    """Return how many served without a mistake show `max_error`: 1 - 0.05^(1/n) <= max_error."""
    return math.ceil(math.log(1 - CONFIDENCE) / math.log1p(-max_error))


def find_threshold(scores: NDArray[np.float64], same: NDArray[np.bool_], max_error: float) -> Bound:
    """Lower the threshold step by step until a test fails, and keep the last that passed.

    The thresholds are fixed by the scores alone. In a fixed sequence each is tested at the full
    level, so the chance that the result exceeds `max_error` is at most 5 %.

    Args:
        scores: Of pairs drawn like the traffic, not used to fit the scorer, [pairs]; `-inf`
            marks a pair that is never served.
        same: Whether one answer serves both, [pairs].
        max_error: Wrong served divided by served.

    Raises:
        ConfigError: `max_error` is not between 0 and 1.
    """
    if not 0 < max_error < 1:
        raise ConfigError(f"max_error={max_error}; give a share between 0 and 1, such as 0.01")
    order = np.argsort(-scores, kind="stable")
    ranked = scores[order]
    wrongs = np.cumsum(~same[order])
    able = int(np.isfinite(ranked).sum())
    best = Bound(max_error, None, len(scores), 0, 0, 1.0)
    for asked in _sequence(max_error, able):
        # All pairs with the same score are served together.
        served = int(np.searchsorted(-ranked, -ranked[asked - 1], side="right"))
        wrong = int(wrongs[served - 1])
        if _at_most(wrong, served, max_error) > 1 - CONFIDENCE:
            break
        best = Bound(max_error, float(ranked[served - 1]), len(scores), served, wrong, 1.0)
    return replace(best, upper_limit=upper_limit(best.num_wrong, best.num_served))


def _sequence(max_error: float, able: int) -> list[int]:
    count = max(fewest_served(max_error), int(able * _START_SHARE))
    steps = []
    while count <= able:
        steps.append(count)
        count = max(count + 1, int(count * _STEP))
    return [*steps, able] if steps else []


def _at_most(wrong: int, served: int, rate: float) -> float:
    """Return P(X <= wrong) for X ~ Binomial(served, rate)."""
    if rate >= 1.0:
        return 0.0
    terms = [0.0]
    for k in range(wrong):
        terms.append(terms[-1] + math.log((served - k) / (k + 1) * rate / (1 - rate)))
    first = served * math.log1p(-rate)
    return min(1.0, math.fsum(math.exp(first + t) for t in terms))
