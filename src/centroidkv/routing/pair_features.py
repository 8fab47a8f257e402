"""A score for "one answer serves both questions", learned from labelled pairs.

Logistic regression over cheap features of the two texts and their two vectors, all symmetric.
Owns no threshold: `calibration` turns the score into a decision. The learned metric is that of
M. Koestinger et al., "Large scale metric learning from equivalence constraints" (CVPR 2012):
inverse covariance of the differences between same-answer pairs less that of the others, with a
ridge.
"""

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from centroidkv.routing.labelled_pairs import LabelledPair
from centroidkv.routing.pair_conflicts import (
    antonyms_differ,
    negations_differ,
    numbers_differ,
    stem,
    words,
)
from centroidkv.types import FloatArray

__all__ = ["GROUPS", "PairScorer", "WordWeights"]

Float64 = NDArray[np.float64]

GROUPS = ("cosine", "metric", "difference", "conflicts", "words", "question words")
_WORD_FEATURES = ("conflicts",) * 3 + ("words",) * 4 + ("question words",)
_ASKING = frozenset(
    [
        "how",
        "what",
        "when",
        "where",
        "why",
        "who",
        "which",
        "whose",
        "can",
        "could",
        "is",
        "are",
        "do",
        "does",
        "did",
    ]
)
_MAX_DIM = 64
_PAIRS_PER_DIM = 20
_RIDGE = 0.3
_INVERSE_PENALTY = 0.02


@dataclass(frozen=True, slots=True)
class WordWeights:
    """Inverse document frequency of stems; a stem not seen weighs as one seen once."""

    idf: Mapping[str, float]
    unseen: float

    @classmethod
    def fit(cls, texts: Sequence[str]) -> "WordWeights":
        """Count in how many different texts each stem occurs."""
        distinct = sorted(set(texts))
        counts = Counter(s for t in distinct for s in {stem(w) for w in words(t)})
        total = math.log1p(len(distinct))
        idf = {s: total - math.log1p(n) + 0.1 for s, n in sorted(counts.items())}
        return cls(idf, total - math.log(2) + 0.1)

    def is_foreign(self, a: list[str], b: list[str]) -> bool:
        """Say whether a word in only one of two texts was never seen in the labelled pairs."""
        alone = {stem(w) for w in a} ^ {stem(w) for w in b}
        return any(s not in self.idf for s in alone if not s[0].isdigit())

    def features(self, a: str, b: str) -> list[float]:
        """Return what the words say: three conflicts, four overlaps, question words."""
        mine, theirs = words(a), words(b)
        one, other = {stem(w) for w in mine}, {stem(w) for w in theirs}
        alone = [self.idf.get(s, self.unseen) for s in one ^ other]
        shared = math.fsum(self.idf.get(s, self.unseen) for s in one & other)
        extra = math.fsum(alone)
        return [
            float(negations_differ(mine, theirs)),
            float(antonyms_differ(mine, theirs)),
            float(numbers_differ(mine, theirs)),
            extra,
            shared / (shared + extra) if shared + extra else 1.0,
            max(alone, default=0.0),
            abs(math.log1p(len(mine)) - math.log1p(len(theirs))),
            float((_ASKING & set(mine)) != (_ASKING & set(theirs))),
        ]


@dataclass(frozen=True, slots=True)
class PairScorer:
    """The fitted score: higher means that one answer more likely serves both.

    `mean` [dim] and `basis` [dim, k] reduce vectors, `within` and `between` [k, k] are inverse
    covariances of differences, `centre`, `scale` and `weights` [features] the regression.
    """

    words: WordWeights
    mean: Float64
    basis: Float64
    within: Float64
    between: Float64
    centre: Float64
    scale: Float64
    weights: Float64
    bias: float

    @classmethod
    def fit(
        cls,
        pairs: Sequence[LabelledPair],
        u: FloatArray,
        v: FloatArray,
        *,
        groups: Sequence[str] = GROUPS,
    ) -> "PairScorer":
        """Fit to pairs of both labels and their vectors, [pairs, dim] each; deterministic."""
        from sklearn.linear_model import LogisticRegression

        same = np.array([p.same_answer for p in pairs])
        weights = WordWeights.fit([t for p in pairs for t in (p.question, p.candidate)])
        mean, basis = _principal(np.concatenate([u, v]).astype(np.float64), len(pairs))
        difference = (u.astype(np.float64) - v) @ basis
        within = _inverse_covariance(difference[same])
        between = _inverse_covariance(difference[~same])
        empty = np.empty(0)
        raw = cls(weights, mean, basis, within, between, empty, empty, empty, 0.0)
        rows = raw.features(pairs, u, v)
        centre, scale = rows.mean(0), rows.std(0)
        scale[scale < 1e-9] = 1.0
        used = np.isin(raw.groups(), groups)
        model = LogisticRegression(C=_INVERSE_PENALTY, max_iter=1000, tol=1e-5)
        model.fit(((rows - centre) / scale)[:, used], same)
        fitted = np.zeros(rows.shape[1])
        fitted[used] = model.coef_[0]
        bias = float(model.intercept_[0])
        return cls(weights, mean, basis, within, between, centre, scale, fitted, bias)

    def groups(self) -> list[str]:
        """Name the group of each feature, in order."""
        wide = self.basis.shape[1]
        return ["cosine", "cosine", "metric", "metric", *["difference"] * 2 * wide, *_WORD_FEATURES]

    def features(self, pairs: Sequence[LabelledPair], u: FloatArray, v: FloatArray) -> Float64:
        """Return [pairs, features]; the same whichever question of a pair comes first."""
        one, other = u.astype(np.float64), v.astype(np.float64)
        cosine = np.einsum("ij,ij->i", one, other)
        left, right = (one - self.mean) @ self.basis, (other - self.mean) @ self.basis
        apart = left - right
        near = np.einsum("ij,ij->i", apart @ self.within, apart)
        far = np.einsum("ij,ij->i", apart @ self.between, apart)
        gap = np.sqrt(np.maximum(1 - cosine, 0.0))
        texts = [self.words.features(p.question, p.candidate) for p in pairs]
        columns = [cosine[:, None], gap[:, None], near[:, None], (near - far)[:, None]]
        return np.hstack([*columns, np.abs(apart), left * right, np.array(texts)])

    def score(self, pairs: Sequence[LabelledPair], u: FloatArray, v: FloatArray) -> Float64:
        """Return the log odds of each pair, [pairs]; its label is not looked at."""
        standard = (self.features(pairs, u, v) - self.centre) / self.scale
        # Row by row, so that a pair scores the same alone and among others.
        return np.asarray((standard * self.weights).sum(axis=1) + self.bias, dtype=np.float64)


def _principal(vectors: Float64, num_pairs: int) -> tuple[Float64, Float64]:
    mean = vectors.mean(0)
    _, axes = np.linalg.eigh(np.cov(vectors - mean, rowvar=False))
    wide = max(1, min(_MAX_DIM, num_pairs // _PAIRS_PER_DIM, axes.shape[1]))
    return mean, np.ascontiguousarray(axes[:, ::-1][:, :wide])


def _inverse_covariance(rows: Float64) -> Float64:
    wide = rows.shape[1]
    second = rows.T @ rows / len(rows)
    ridge = _RIDGE * max(float(np.trace(second)), 1e-9) / wide
    inverse = np.linalg.inv(second + ridge * np.eye(wide))
    return np.asarray((inverse + inverse.T) / 2, dtype=np.float64)
