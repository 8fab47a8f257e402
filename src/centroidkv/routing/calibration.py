"""Whether the answer to a past question may be served for a new one, with a bounded error.

From labelled pairs it fits a score and, on labels the score has not seen, the loosest threshold at
which the wrong-hit rate (wrong served divided by served) stays under a bound with 95 % confidence.
The bound holds for pairs drawn like the labelled ones: label the pairs that the cache proposes,
not pairs that were made up. Knows no store and no model; the caller brings the vectors.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from centroidkv.errors import ConfigError
from centroidkv.routing.calibration_file import load_parts, save_parts
from centroidkv.routing.labelled_pairs import LabelledPair, check_both_classes, read_pairs
from centroidkv.routing.pair_conflicts import conflict, is_variation, words
from centroidkv.routing.pair_features import PairScorer
from centroidkv.routing.risk import Bound, find_threshold
from centroidkv.types import FloatArray
from centroidkv.vault import IN_THE_CLEAR, Vault

__all__ = [
    "Calibration",
    "Decision",
    "LabelledPair",
    "fit_calibration",
    "guarded_scores",
    "read_pairs",
]

_FOLDS = 5
_FEWEST_PER_LABEL = 10


@dataclass(frozen=True, slots=True)
class Decision:
    """Whether to serve, and why. `threshold` is None where the bound cannot be kept."""

    serve: bool
    score: float
    threshold: float | None
    reason: str


@dataclass(slots=True)
class Calibration:
    """A fitted score and the held-out scores that its thresholds are found on.

    `scores` and `same` are [pairs]; `-inf` marks a pair that a veto keeps from being served.
    """

    scorer: PairScorer
    scores: NDArray[np.float64]
    same: NDArray[np.bool_]
    embedder_fingerprint: str
    _bounds: dict[float, Bound] = field(default_factory=dict, repr=False)

    def bound(self, max_error: float) -> Bound:
        """Return the threshold for `max_error` with the counts that it rests on."""
        if max_error not in self._bounds:
            self._bounds[max_error] = find_threshold(self.scores, self.same, max_error)
        return self._bounds[max_error]

    def threshold(self, max_error: float) -> float | None:
        """Return the loosest score that keeps `max_error`, None if no score does.

        Raises:
            ConfigError: `max_error` is not between 0 and 1.
        """
        return self.bound(max_error).threshold

    def report(self, max_errors: Sequence[float] = (0.01, 0.02, 0.05)) -> list[Bound]:
        """Return one bound for each of `max_errors`; `str` of it is a sentence."""
        return [self.bound(e) for e in max_errors]

    def decide(
        self, question: str, candidate: str, u: FloatArray, v: FloatArray, *, max_error: float
    ) -> Decision:
        """Decide whether the candidate's answer may be served for the question.

        A negation, an opposite or a number in only one of the two is a veto: labels show how often
        a look-alike is wrong on average, not that this one is right. So is a word that no labelled
        pair contains, in one of two texts that are nearly the same otherwise: nothing is known of
        what it changes.

        Args:
            question: The new question.
            candidate: The past question whose answer is at hand.
            u: Unit vector of the question, [dim].
            v: Unit vector of the candidate, [dim].
            max_error: Largest share of wrong answers among those served.
        """
        threshold = self.threshold(max_error)
        pair = LabelledPair(question, candidate, same_answer=False)
        score = float(self.scorer.score([pair], u[None], v[None])[0])
        reason = _veto(self.scorer, question, candidate)
        if reason is not None:
            return Decision(serve=False, score=score, threshold=threshold, reason=reason)
        if threshold is None:
            reason = f"the labels support no threshold at {max_error:.1%}"
            return Decision(serve=False, score=score, threshold=None, reason=reason)
        serve = score >= threshold
        reason = "above the threshold" if serve else "below the threshold"
        return Decision(serve=serve, score=score, threshold=threshold, reason=reason)

    def save(self, path: Path, vault: Vault = IN_THE_CLEAR) -> None:
        """Write the calibration to one file, whole or not at all."""
        own = self.embedder_fingerprint
        save_parts(path, self.scorer, self.scores, self.same, fingerprint=own, vault=vault)

    @classmethod
    def load(
        cls, path: Path, *, embedder_fingerprint: str, vault: Vault = IN_THE_CLEAR
    ) -> "Calibration":
        """Read a calibration that was fitted with the same embedder.

        Raises:
            CacheCorrupt: The file is missing, truncated, altered or not a calibration.
            CacheMismatch: It is of another format or was fitted with another embedder.
        """
        scorer, scores, same = load_parts(path, fingerprint=embedder_fingerprint, vault=vault)
        return cls(scorer, scores, same, embedder_fingerprint)


def fit_calibration(
    pairs: Sequence[LabelledPair],
    embed: Callable[[Sequence[str]], FloatArray],
    *,
    embedder_fingerprint: str,
    seed: int = 0,
    past_pairs: Sequence[LabelledPair] = (),
) -> Calibration:
    """Fit the score and score the pairs held out, on which thresholds are then found.

    With `past_pairs` the score is fitted on these alone and every one of `pairs` serves the
    threshold: that is Learn-then-Test as published. The score then also looks at the past questions
    around a pair, whose groups the labels tell. Without them the pairs are cross-fitted in
    five folds: each is scored by a fit that has not seen it, and the fit to all of them is kept.
    The guarantee then rests on the final fit being no worse than those of four folds; see
    V. Chernozhukov et al., "Double/debiased machine learning" (2018) on cross-fitting.

    Args:
        pairs: Drawn like the traffic: a question and the candidate that the cache proposes.
        embed: Returns unit vectors, [texts, dim].
        embedder_fingerprint: Kept in the file, so that it is used with this embedder only.
        seed: Of the folds.
        past_pairs: Pairs of past questions, however drawn, such as each with its five nearest.

    Raises:
        ConfigError: Either list has one label only or a label that is none, there are too few of a
            label, a pair stands in both lists, or a vector is not finite.
    """
    check_both_classes(list(pairs), "pairs")
    u, v = _vectors(pairs, embed)
    if past_pairs:
        check_both_classes(list(past_pairs), "past_pairs")
        _check_apart(pairs, past_pairs)
        scorer = PairScorer.fit(past_pairs, *_vectors(past_pairs, embed), with_neighbours=True)
        scores = guarded_scores(scorer, pairs, u, v)
    else:
        scores = _cross_scores(pairs, u, v, seed=seed)
        scorer = PairScorer.fit(pairs, u, v)
    same = np.array([p.same_answer for p in pairs])
    return Calibration(scorer, scores, same, embedder_fingerprint)


def _veto(scorer: PairScorer, question: str, candidate: str) -> str | None:
    mine, theirs = words(question), words(candidate)
    reason = conflict(mine, theirs)
    if reason is None and is_variation(mine, theirs) and scorer.words.num_foreign(mine, theirs):
        return "a word that no labelled pair contains"
    return reason


def guarded_scores(
    scorer: PairScorer, pairs: Sequence[LabelledPair], u: FloatArray, v: FloatArray
) -> NDArray[np.float64]:
    """Score pairs, [pairs]; `-inf` where a veto forbids to serve one."""
    vetoed = [_veto(scorer, p.question, p.candidate) is not None for p in pairs]
    return np.where(vetoed, -np.inf, scorer.score(pairs, u, v))


def _vectors(
    pairs: Sequence[LabelledPair], embed: Callable[[Sequence[str]], FloatArray]
) -> tuple[FloatArray, FloatArray]:
    texts = sorted({t for p in pairs for t in (p.question, p.candidate)})
    vectors = dict(zip(texts, np.asarray(embed(texts)), strict=True))
    for text, vector in vectors.items():
        if not np.isfinite(vector).all():
            raise ConfigError(
                f"the vector of {text!r} is not finite: the embedder failed on it; leave the pair "
                "out or use another embedder"
            )
    one = np.stack([vectors[p.question] for p in pairs])
    return one, np.stack([vectors[p.candidate] for p in pairs])


def _check_apart(pairs: Sequence[LabelledPair], past_pairs: Sequence[LabelledPair]) -> None:
    known = {(p.question, p.candidate) for p in past_pairs}
    both = sum((p.question, p.candidate) in known for p in pairs)
    if both:
        raise ConfigError(
            f"{both} pairs stand in both lists; no bound holds where the score has seen the pairs "
            "that thresholds are found on: take them out of the past pairs"
        )


def _cross_scores(
    pairs: Sequence[LabelledPair],
    u: FloatArray,
    v: FloatArray,
    *,
    seed: int,
) -> NDArray[np.float64]:
    """Score each pair by a fit that saw neither it nor a pair that shares a question with it."""
    folds = _folds(pairs, seed)
    scores = np.empty(len(pairs))
    for fold in range(_FOLDS):
        held = folds == fold
        if not held.any():
            continue
        train = [p for p, out in zip(pairs, held, strict=True) if not out]
        _check_enough(train)
        scorer = PairScorer.fit(train, u[~held], v[~held])
        test = [p for p, out in zip(pairs, held, strict=True) if out]
        scores[held] = guarded_scores(scorer, test, u[held], v[held])
    return scores


def _folds(pairs: Sequence[LabelledPair], seed: int) -> NDArray[np.int64]:
    """Assign folds at random, all pairs of one candidate to the same."""
    names = sorted({p.candidate for p in pairs})
    drawn = np.random.default_rng(seed).permutation(len(names)) % _FOLDS
    place = dict(zip(names, drawn, strict=True))
    return np.array([place[p.candidate] for p in pairs])


def _check_enough(train: Sequence[LabelledPair]) -> None:
    right = sum(p.same_answer for p in train)
    if min(right, len(train) - right) < _FEWEST_PER_LABEL:
        raise ConfigError(
            f"{right} pairs labelled 1 and {len(train) - right} labelled 0 are left to fit on; "
            f"label at least {2 * _FEWEST_PER_LABEL} of each"
        )
