"""What the labelled past questions around a pair say: do its two sides belong to one group?

A group is a set of past questions that one answer serves. A question's group is guessed from its
nearest past questions (votes by cosine) and by a linear classifier over the groups; a past
question's own group is known. The features tell how well the two guesses agree, and how often
pairs of that group were right, shrunken towards the mean where the group has few labels.
Owns no label and no threshold. Symmetric in the two questions.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from centroidkv.routing.labelled_pairs import LabelledPair
from centroidkv.routing.pair_groups import group_questions
from centroidkv.types import FloatArray

__all__ = ["NUM_FEATURES", "PairNeighbours", "held_out_features"]

Float64 = NDArray[np.float64]

NUM_FEATURES = 6
_NEAREST = 20
_VOTERS = 10
# exp(20 * cosine): a neighbour 0.1 further away has a seventh of the weight.
_SHARPNESS = 20.0
_IDENTICAL = 0.9999
_FEWEST_IN_CLASS = 4
_PENALTY = 20.0
_FLOOR = 1e-3
# A group's share of right pairs counts as if it had this many more pairs of the mean.
_SHRINKAGE = 20.0
_ROWS = 1024
_FOLDS = 5


@dataclass(frozen=True, slots=True)
class PairNeighbours:
    """Past questions with their groups; none at all is allowed, the features are then 0.

    `vectors` [past, dim] float32, `group` [past]; `ease` [groups] is the shrunken log odds that a
    pair of the group is right, less that of all pairs; `weights` [dim, classes] and `bias`
    [classes] the classifier, whose classes are the groups `classes`.
    """

    vectors: FloatArray
    group: NDArray[np.int64]
    ease: Float64
    weights: Float64
    bias: Float64
    classes: NDArray[np.int64]

    @classmethod
    def none(cls, dim: int) -> "PairNeighbours":
        """Return an instance without past questions."""
        empty = np.empty(0, np.int64)
        none = np.empty(0)
        return cls(np.empty((0, dim), np.float32), empty, none, np.empty((dim, 0)), none, empty)

    @classmethod
    def fit(cls, pairs: Sequence[LabelledPair], u: FloatArray, v: FloatArray) -> "PairNeighbours":
        """Group the questions of labelled pairs, whose vectors are `u` and `v` [pairs, dim]."""
        groups = group_questions(pairs)
        known = {p.question: x for p, x in zip(pairs, u, strict=True)}
        known |= {p.candidate: x for p, x in zip(pairs, v, strict=True)}
        vectors = np.stack([known[text] for text in groups]).astype(np.float32)
        group = np.array(list(groups.values()))
        weights, bias, classes = _classifier(vectors, group)
        ease = _ease(pairs, groups)
        return cls(vectors, group, ease, weights, bias, classes)

    def features(self, u: FloatArray, v: FloatArray) -> Float64:
        """Return [pairs, 6] for the vectors of both sides, [pairs, dim] each."""
        if not len(self.vectors):
            return np.zeros((len(u), NUM_FEATURES))
        starts = range(0, len(u), _ROWS)
        return np.concatenate(
            [self._features(u[i : i + _ROWS], v[i : i + _ROWS]) for i in starts]
            or [np.zeros((0, NUM_FEATURES))]
        )

    def _features(self, u: FloatArray, v: FloatArray) -> Float64:
        columns = []
        mine, theirs = self._guesses(u), self._guesses(v)
        for one, other in zip(mine, theirs, strict=True):
            agree = np.einsum("ij,ij->i", one, other)
            rival = (one * (1 - other) + other * (1 - one)).max(axis=1)
            columns += [np.log(agree + _FLOOR), np.log(agree + _FLOOR) - np.log(rival + _FLOOR)]
        columns[4] = np.exp(columns[4])
        columns[5] = (mine[0] @ self.ease + theirs[0] @ self.ease) / 2
        return np.stack(columns, axis=1)

    def _guesses(self, x: FloatArray) -> tuple[Float64, Float64, Float64]:
        """Guess groups by weighted votes, by the classifier and by plain votes, [x, groups] each.

        The group of a past question itself is not guessed.
        """
        near = x.astype(np.float32) @ self.vectors.T
        order = _nearest_first(near, min(_NEAREST, near.shape[1]))
        cosine = np.take_along_axis(near, order, axis=1).astype(np.float64)
        weight = np.exp(_SHARPNESS * (cosine - cosine[:, :1]))
        soft = self._voted(order, weight)
        plain = self._voted(order[:, :_VOTERS], np.ones_like(weight[:, :_VOTERS]))
        linear = self._classified(x) if len(self.classes) else soft.copy()
        known = cosine[:, 0] >= _IDENTICAL
        own = self._voted(order[:, :1], np.ones((len(x), 1)))
        for guess in (soft, linear, plain):
            guess[known] = own[known]
        return soft, linear, plain

    def _voted(self, order: NDArray[np.int64], weight: Float64) -> Float64:
        votes = np.zeros((len(order), len(self.ease)))
        rows = np.repeat(np.arange(len(order)), order.shape[1])
        np.add.at(votes, (rows, self.group[order].ravel()), weight.ravel())
        votes /= votes.sum(axis=1, keepdims=True)
        return votes

    def _classified(self, x: FloatArray) -> Float64:
        odds = x.astype(np.float64) @ self.weights + self.bias
        share = np.exp(odds - odds.max(axis=1, keepdims=True))
        guess = np.zeros((len(x), len(self.ease)))
        guess[:, self.classes] = share / share.sum(axis=1, keepdims=True)
        return guess


def _nearest_first(near: FloatArray, count: int) -> NDArray[np.int64]:
    """Return the places of the largest `count` of each row, in order."""
    some = np.argpartition(-near, count - 1, axis=1)[:, :count]
    ranks = np.argsort(-np.take_along_axis(near, some, axis=1), axis=1, kind="stable")
    return np.asarray(np.take_along_axis(some, ranks, axis=1), np.int64)


def _classifier(
    vectors: FloatArray, group: NDArray[np.int64]
) -> tuple[Float64, Float64, NDArray[np.int64]]:
    """Fit a linear classifier to the groups that have several members; none if there are not two.

    Multinomial logistic regression, so the shares of the classes add up to 1.
    """
    from sklearn.linear_model import LogisticRegression

    used = np.bincount(group)[group] >= _FEWEST_IN_CLASS
    classes = np.unique(group[used])
    if len(classes) < 2:
        return np.empty((vectors.shape[1], 0)), np.empty(0), np.empty(0, np.int64)
    model = LogisticRegression(C=_PENALTY, max_iter=200, tol=1e-3)
    model.fit(vectors[used].astype(np.float64), group[used])
    weights, bias = model.coef_.T, model.intercept_
    if len(classes) == 2:  # of two classes only the second one's odds are fitted
        weights, bias = np.hstack([np.zeros_like(weights), weights]), np.r_[0.0, bias]
    return np.ascontiguousarray(weights, np.float64), np.asarray(bias, np.float64), classes


def _ease(pairs: Sequence[LabelledPair], groups: dict[str, int]) -> Float64:
    """Return per group the log odds of its pairs being right, shrunken, less those of all."""
    right, total = np.zeros(max(groups.values()) + 1), np.zeros(max(groups.values()) + 1)
    for pair in pairs:
        for text in (pair.question, pair.candidate):
            right[groups[text]] += pair.same_answer
            total[groups[text]] += 1
    mean = (right.sum() + 1) / (total.sum() + 2)
    share = (right + _SHRINKAGE * mean) / (total + _SHRINKAGE)
    share = np.clip(share, 1e-6, 1 - 1e-6)
    return np.asarray(np.log(share / (1 - share)) - np.log(mean / (1 - mean)), np.float64)


def held_out_features(
    pairs: Sequence[LabelledPair], u: FloatArray, v: FloatArray
) -> NDArray[np.float64]:
    """Return what neighbours say of each pair when its question is new, [pairs, 6].

    Five folds of questions: a pair is looked at by an instance that saw no label of a question of
    its fold. NaN where its candidate falls into the same fold, for that would then be unknown too.
    """
    asked = sorted({p.question for p in pairs})
    drawn = np.random.default_rng(0).permutation(len(asked)) % _FOLDS
    place = dict(zip(asked, drawn, strict=True))
    fold = np.array([place[p.question] for p in pairs])
    other = np.array([place.get(p.candidate, -1) for p in pairs])
    rows = np.full((len(pairs), NUM_FEATURES), np.nan)
    for one in range(_FOLDS):
        seen = (fold != one) & (other != one)
        held = (fold == one) & (other != one)
        if seen.any() and held.any():
            known = [p for p, s in zip(pairs, seen, strict=True) if s]
            rows[held] = PairNeighbours.fit(known, u[seen], v[seen]).features(u[held], v[held])
    return rows
