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
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from centroidkv.errors import ConfigError
from centroidkv.routing.labelled_pairs import LabelledPair
from centroidkv.routing.pair_conflicts import (
    antonyms_differ,
    negations_differ,
    numbers_differ,
    stem,
    words,
)
from centroidkv.routing.pair_neighbours import (
    NUM_FEATURES,
    PairNeighbours,
    held_out_features,
)
from centroidkv.types import FloatArray

__all__ = ["GROUPS", "PairScorer", "WordWeights"]

Float64 = NDArray[np.float64]

GROUPS = (
    "cosine",
    "metric",
    "difference",
    "conflicts",
    "words",
    "question words",
    "neighbours",
    "group ease",
)
_WORD_FEATURES = ("conflicts",) * 3 + ("words",) * 5 + ("question words",)
_FOREIGN = -3  # place of the number of foreign words among the features of a pair alone
_NEIGHBOUR_FEATURES = ("neighbours",) * (NUM_FEATURES - 1) + ("group ease",)


def _listed(text: str) -> frozenset[str]:
    return frozenset(text.split())


_ASKING = _listed("how what when where why who which whose can could is are do does did")
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

    def num_foreign(self, a: list[str], b: list[str], *, as_new: bool = False) -> int:
        """Count the words in only one of two texts that were never seen in the labelled pairs.

        With `as_new` the first text is one of these, and counts as if it were not: a word that is
        in no other text is then foreign.
        """
        mine, theirs = {stem(w) for w in a}, {stem(w) for w in b}
        if as_new:
            return sum(self.idf[s] >= self.unseen for s in mine - theirs if not s[0].isdigit())
        return sum(s not in self.idf for s in mine ^ theirs if not s[0].isdigit())

    def features(self, a: str, b: str) -> list[float]:
        """Return what the words say: three conflicts, five overlaps, question words."""
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
            float(self.num_foreign(mine, theirs)),
            abs(math.log1p(len(mine)) - math.log1p(len(theirs))),
            float((_ASKING & set(mine)) != (_ASKING & set(theirs))),
        ]


@dataclass(frozen=True, slots=True)
class PairScorer:
    """The fitted score: higher means that one answer more likely serves both.

    `neighbours` holds the labelled past questions, if the score looks at them. `mean` [dim] and
    `basis` [dim, k] reduce vectors, `within` and `between` [k, k] are inverse covariances of
    differences, `centre`, `scale` and `weights` [features] the regression.
    """

    words: WordWeights
    neighbours: PairNeighbours
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
        with_neighbours: bool = False,
    ) -> "PairScorer":
        """Fit to pairs of both labels and their vectors, [pairs, dim] each; deterministic.

        With `with_neighbours` the pairs are taken to be of past questions, and the score looks at
        those around a pair.
        """
        raw, rows = cls.prepare(pairs, u, v, with_neighbours=with_neighbours)
        return raw.regress(rows, np.array([p.same_answer for p in pairs]))

    @classmethod
    def prepare(
        cls,
        pairs: Sequence[LabelledPair],
        u: FloatArray,
        v: FloatArray,
        *,
        with_neighbours: bool,
    ) -> "tuple[PairScorer, Float64]":
        """Return a scorer without weights and the rows to fit them to, [pairs, features].

        What neighbours and unknown words say of a training pair is told as if its question were
        new. Rows of which that cannot be told hold NaN.
        """
        weights = WordWeights.fit([t for p in pairs for t in (p.question, p.candidate)])
        around = PairNeighbours.none(u.shape[1])
        held = around.features(u, v)
        if with_neighbours:
            around = PairNeighbours.fit(pairs, u, v)
            held = held_out_features(pairs, u, v)
        mean, basis = _principal(np.concatenate([u, v]).astype(np.float64), len(pairs))
        same = np.array([p.same_answer for p in pairs])
        difference = (u.astype(np.float64) - v) @ basis
        within = _inverse_covariance(difference[same])
        between = _inverse_covariance(difference[~same])
        empty = np.empty(0)
        raw = cls(weights, around, mean, basis, within, between, empty, empty, empty, 0.0)
        alone = raw.pair_features(pairs, u, v)
        texts = [(words(p.question), words(p.candidate)) for p in pairs]
        alone[:, _FOREIGN] = [weights.num_foreign(a, b, as_new=True) for a, b in texts]
        return raw, np.hstack([alone, held])

    def regress(
        self, rows: Float64, same: NDArray[np.bool_], groups: Sequence[str] = GROUPS
    ) -> "PairScorer":
        """Return this scorer with weights for the features of some groups, fitted to rows."""
        from sklearn.linear_model import LogisticRegression

        used = np.isin(self.groups(), groups)
        known = ~np.isnan(rows).any(axis=1)
        rows, same = rows[known], same[known]
        if len(np.unique(same)) < 2:
            raise ConfigError(
                f"{len(same)} past pairs are left to fit the score to, all of one label; label "
                "more pairs of past questions"
            )
        centre, scale = rows.mean(0), rows.std(0)
        scale[scale < 1e-9] = 1.0
        model = LogisticRegression(C=_INVERSE_PENALTY, max_iter=1000, tol=1e-5)
        model.fit(((rows - centre) / scale)[:, used], same)
        weights = np.zeros(rows.shape[1])
        weights[used] = model.coef_[0]
        bias = float(model.intercept_[0])
        return replace(self, centre=centre, scale=scale, weights=weights, bias=bias)

    def groups(self) -> list[str]:
        """Name the group of each feature, in order."""
        wide = self.basis.shape[1]
        plain = ["cosine", "cosine", "metric", "metric", *["difference"] * 2 * wide]
        return [*plain, *_WORD_FEATURES, *_NEIGHBOUR_FEATURES]

    def features(self, pairs: Sequence[LabelledPair], u: FloatArray, v: FloatArray) -> Float64:
        """Return [pairs, features]; the same whichever question of a pair comes first."""
        return np.hstack([self.pair_features(pairs, u, v), self.neighbours.features(u, v)])

    def pair_features(self, pairs: Sequence[LabelledPair], u: FloatArray, v: FloatArray) -> Float64:
        """Return the features that look at the pair alone, [pairs, features]."""
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
