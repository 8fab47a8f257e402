"""How long computing takes, by number of tokens and by what stands before them.

Measured from what requests compute anyway: a forward costs something for being run, something for
each token, and something for each pair of tokens that attend. Knows no model.
"""

import threading
from collections import deque

import numpy as np
from numpy.typing import NDArray

__all__ = ["PrefillSpeed"]

_REMEMBERED = 48  # forwards
_FADE = 0.95  # of the weight of a forward, for each later one
# What one run and one pair of tokens cost, in tokens, until lengths enough were seen.
_RUN, _PAIR = 100.0, 1 / 8000
_ASSUMED_AT = ((64, 0), (256, 0), (256, 1792), (2048, 0))  # (tokens, behind)
_ASSUMED_WEIGHT = 0.03


class PrefillSpeed:
    """Seconds of a prefill, fitted to the last ones. Safe for many threads."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._seen: deque[tuple[int, int, float]] = deque(maxlen=_REMEMBERED)
        self._cost: NDArray[np.float64] | None = None  # of a run, of a token, of a pair

    def timed(self, num_tokens: int, seconds: float, *, behind: int = 0) -> None:
        """Note what computing so many tokens behind so many others took."""
        if num_tokens < 1 or seconds <= 0:
            return
        with self._lock:
            self._seen.append((num_tokens, behind, seconds))
            self._cost = None

    def seconds(self, num_tokens: int, *, behind: int = 0) -> float | None:
        """Return what computing takes; None before anything was measured."""
        with self._lock:
            if not self._seen:
                return None
            if self._cost is None:
                self._cost = self._fitted()
            return float(_terms(num_tokens, behind) @ self._cost)

    def _fitted(self) -> NDArray[np.float64]:
        """Fit the three costs by their relative error; none is below zero."""
        assumed = np.array([_RUN, 1.0, _PAIR])
        terms = np.array([_terms(n, behind) for n, behind, _ in self._seen])
        seconds = np.array([s for _, _, s in self._seen])
        weights = _FADE ** np.arange(len(seconds))[::-1]
        # The machine's speed, if the shape is the one assumed; a pause of the machine is no cost.
        scale = float(np.median(seconds / (terms @ assumed)))
        guesses = np.array([_terms(*at) for at in _ASSUMED_AT])
        rows = np.concatenate([terms, guesses])
        wanted = np.concatenate([seconds, scale * (guesses @ assumed)])
        weights = np.concatenate([weights, np.full(len(guesses), _ASSUMED_WEIGHT)])
        relative = rows * (weights / wanted)[:, None]
        return _non_negative(relative, np.asarray(weights, np.float64))


def _terms(num_tokens: int, behind: int) -> NDArray[np.float64]:
    """Return what a prefill consists of: runs, tokens, pairs of tokens that attend."""
    return np.array([1.0, num_tokens, num_tokens * (behind + num_tokens / 2)])


def _non_negative(rows: NDArray[np.float64], wanted: NDArray[np.float64]) -> NDArray[np.float64]:
    """Solve least squares; what would be below zero is left out."""
    used = list(range(rows.shape[1]))
    while True:
        found, *_ = np.linalg.lstsq(rows[:, used], wanted, rcond=None)
        if len(used) == 1 or found.min() >= 0:
            break
        used.pop(int(found.argmin()))
    cost = np.zeros(rows.shape[1])
    cost[used] = np.maximum(found, 0.0)
    return cost
