"""Drafts: tokens guessed from earlier answers and from the prompt, which the model then verifies.

Owns what to guess and how many tokens of it; what a small model guesses stands in
`draft_model.py`. Knows no tensor: the running sequence verifies a draft in one forward and keeps
what the model would have chosen anyway, so no draft changes an answer. Sources: Z. He et al.,
"REST: Retrieval-Based Speculative Decoding" (arXiv:2311.08252); A. Saxena, "Prompt Lookup
Decoding" (2023).
"""

import threading
from collections.abc import Callable, Sequence
from typing import Literal, TypeAlias

from centroidkv.types import Drafts

Kind: TypeAlias = Literal["repeat", "match", "model"]

__all__ = ["Drafter", "Kind", "Pace"]

MOST_TOKENS = 48
LONGEST_MATCH, SHORTEST_MATCH = 4, 2
# Seen before anything was measured: how often a guessed token is right, in how many guesses.
_PRIOR: dict[Kind, tuple[float, float]] = {
    "repeat": (9.0, 10.0),
    "match": (4.0, 10.0),
    "model": (3.0, 5.0),
}
_FADE = 0.98  # of the weight of earlier guesses, for each new one
_NEWEST = 0.1  # weight of the newest time
_PRIOR_SLOPE = 0.12  # of one more token, in forwards of one
# What a draft must promise to save, in forwards of one, so that noise does not choose it.
_LEAST_GAIN = 0.1
# Of the time of all forwards, what guesses of one kind may waste in the long run.
_WASTE = 0.005
# What a kind may owe, in forwards of one, before it pauses; a small model has prompts to read,
# which pays off over an answer or two. What it saves up for trials ends at as much.
_MOST_OWED: dict[Kind, float] = {"repeat": 8.0, "match": 4.0, "model": 32.0}


class Drafter:
    """Guesses how one answer goes on.

    An earlier answer to the very same prompt goes first; where the answer leaves it, the longest
    match of the last few tokens in the cluster's earlier answers, this answer and the prompt.
    Earlier answers may come from a damaged file: they end before a token that the model, with
    `num_ids` tokens, does not have.
    """

    def __init__(self, drafts: Drafts, *, num_ids: int = 1 << 32) -> None:
        self._repeat = _known(drafts.repeat, num_ids)
        self._answer: list[int] = []
        self._is_repeat = bool(self._repeat)
        answers = (list(_known(answer, num_ids)) for answer in drafts.answers)
        self._texts = [*answers, list(drafts.prompt)]
        self._places: list[dict[tuple[int, ...], tuple[int, int]]] | None = None

    @property
    def answer(self) -> Sequence[int]:
        """The tokens of the answer so far."""
        return self._answer

    def push(self, token: int) -> None:
        """Take the next token of the answer."""
        at = len(self._answer)
        self._is_repeat = self._is_repeat and at < len(self._repeat) and self._repeat[at] == token
        self._answer.append(token)
        self._texts[-1].append(token)
        if self._places is not None:
            self._note(len(self._texts) - 1, len(self._texts[-1]) - 1)

    def propose(self) -> tuple[Kind, Sequence[int]]:
        """Return what may follow, and where it is from; empty when nothing is known."""
        if self._is_repeat:
            return "repeat", self._repeat[len(self._answer) :][:MOST_TOKENS]
        return "match", self._matched()

    def _matched(self) -> Sequence[int]:
        if self._places is None:
            self._places = [{} for _ in range(LONGEST_MATCH + 1)]
            for number, text in enumerate(self._texts):
                for end in range(len(text)):
                    self._note(number, end)
        last = self._texts[-1]
        for length in range(LONGEST_MATCH, SHORTEST_MATCH - 1, -1):
            found = self._places[length].get(tuple(last[-length:]))
            if found is not None:
                number, end = found
                return self._texts[number][end : end + MOST_TOKENS]
        return ()

    def _note(self, number: int, end: int) -> None:
        """Note that the tokens before `end` of a text are followed by the one there."""
        assert self._places is not None
        text = self._texts[number]
        for length in range(SHORTEST_MATCH, min(LONGEST_MATCH, end) + 1):
            self._places[length][tuple(text[end - length : end])] = (number, end)


def _known(token_ids: Sequence[int], num_ids: int) -> Sequence[int]:
    if not token_ids or max(token_ids) < num_ids:
        return token_ids
    return token_ids[: next(n for n, token in enumerate(token_ids) if token >= num_ids)]


class Pace:
    """How many guessed tokens are worth verifying, from measured times and measured luck.

    Keeps an account of each kind of guess: what it cost against what it saved. A kind in debt
    pauses until its share of the passing time (`_WASTE`) has paid it off, so that what guesses can
    waste is bounded even where their luck turns whenever they are trusted. Safe for many threads;
    one a model, since times and luck belong to model and machine.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._luck = {kind: list(prior) for kind, prior in _PRIOR.items()}
        self._owed: dict[Kind, float] = dict.fromkeys(_PRIOR, 0.0)  # seconds
        # By size class, the power of two above: mean tokens and seconds of a forward.
        self._costs: dict[int, tuple[float, float]] = {}

    def timed(self, num_tokens: int, seconds: float) -> None:
        """Note what a forward of so many tokens cost."""
        size = (num_tokens - 1).bit_length()
        with self._lock:
            tokens, known = self._costs.get(size, (float(num_tokens), seconds))
            # A pause of the machine is not a cost of the width.
            seconds = min(seconds, 2 * known)
            self._costs[size] = (
                tokens + _NEWEST * (num_tokens - tokens),
                known + _NEWEST * (seconds - known),
            )
            for kind in self._owed:
                self._pay(kind, _WASTE * seconds)

    def guessed(self, kind: Kind, *, is_right: bool) -> None:
        """Note whether a guessed token that was judged was right."""
        with self._lock:
            luck = self._luck[kind]
            luck[0] = _FADE * luck[0] + is_right
            luck[1] = _FADE * luck[1] + 1

    def seconds(self, num_tokens: int) -> float:
        """Return what a forward of so many tokens costs."""
        with self._lock:
            return self._cost(num_tokens)

    # what is worth verifying

    def length(self, kind: Kind, most: int, *, behind: int = 1) -> int:
        """Return how many guessed tokens to run behind `behind` that must be run anyway.

        The number that saves most time, or 0 where none saves any.
        """
        return 0 if self.is_paused(kind) else self.choice(kind, most, behind=behind)[0]

    def choice(
        self,
        kind: Kind,
        most: int,
        *,
        behind: int = 1,
        making: Callable[[int], float] | None = None,
    ) -> tuple[int, float]:
        """Return how many guessed tokens to run, as `length` does, and the seconds that saves.

        Args:
            kind: Where the guess is from.
            most: How many tokens there are to verify.
            behind: How many tokens are run anyway.
            making: What so many guesses cost to make, in seconds; None for nothing.
        """
        with self._lock:
            step, start = self._cost(1), self._cost(behind)
            rate = self._rate(kind)
            best, best_saved, right, chance = 0, _LEAST_GAIN * step, 0.0, 1.0
            for extra in range(1, min(most, MOST_TOKENS) + 1):
                chance *= rate
                right += chance
                saved = right * step - (self._cost(behind + extra) - start)
                if making is not None:
                    saved -= making(extra)
                if saved > best_saved:
                    best, best_saved = extra, saved
        return best, best_saved if best else 0.0

    def right(self, kind: Kind, num_tokens: int) -> float:
        """Return how many leading tokens of a guess are right, as a mean."""
        with self._lock:
            rate = self._rate(kind)
        return sum(rate**i for i in range(1, num_tokens + 1))

    def _rate(self, kind: Kind) -> float:
        right, judged = self._luck[kind]
        return min(0.99, right / judged)

    # the account of each kind

    def is_paused(self, kind: Kind) -> bool:
        """Tell whether a kind of guess has yet to pay off what it wasted."""
        with self._lock:
            return self._owed[kind] > _MOST_OWED[kind] * self._cost(1)

    def owed(self, kind: Kind) -> float:
        """Return the seconds that a kind of guess has cost beyond what it saved.

        Below zero where it may cost as much without being worth it.
        """
        with self._lock:
            return self._owed[kind]

    def spent(self, kind: Kind, seconds: float) -> None:
        """Note what making guesses cost."""
        with self._lock:
            self._owed[kind] += seconds

    def verified(self, kind: Kind, num_tokens: int, *, behind: int) -> None:
        """Note that so many guessed tokens were run besides `behind` others."""
        with self._lock:
            self._owed[kind] += self._cost(behind + num_tokens) - self._cost(behind)

    def saved(self, kind: Kind) -> None:
        """Note that a guessed token was right, which saves a forward."""
        with self._lock:
            self._pay(kind, self._cost(1))

    def _pay(self, kind: Kind, seconds: float) -> None:
        # Stored guesses are judged without cost and need no savings; a model's are not.
        most = _MOST_OWED[kind] * self._cost(1) if kind == "model" else 0.0
        self._owed[kind] = max(self._owed[kind] - seconds, -most)

    def _cost(self, num_tokens: int) -> float:
        """Return the seconds of a forward, between the sizes that were measured."""
        known = sorted(self._costs.values())
        if not known:
            return _prior_cost(num_tokens)
        below = [c for c in known if c[0] <= num_tokens]
        above = [c for c in known if c[0] > num_tokens]
        if not below:
            tokens, seconds = above[0]
            return seconds * _prior_cost(num_tokens) / _prior_cost(tokens)
        tokens, seconds = below[-1]
        if not above:
            return seconds * (
                1 + _PRIOR_SLOPE * (num_tokens - tokens) / (1 + _PRIOR_SLOPE * tokens)
            )
        further, dearer = above[0]
        share = (num_tokens - tokens) / (further - tokens)
        return seconds + share * (max(dearer, seconds) - seconds)


def _prior_cost(num_tokens: float) -> float:
    """Return what a forward costs in forwards of one, before anything was measured."""
    return 1 + _PRIOR_SLOPE * (num_tokens - 1)
