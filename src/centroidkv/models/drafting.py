"""Drafts: tokens guessed from earlier answers and from the prompt, which the model then verifies.

Owns what to guess and how many tokens of it. Knows no tensor: the running sequence verifies a
draft in one forward and keeps what the model would have chosen anyway, so no draft changes an
answer. Sources: Z. He et al., "REST: Retrieval-Based Speculative Decoding" (arXiv:2311.08252);
A. Saxena, "Prompt Lookup Decoding" (2023).
"""

import threading
from collections.abc import Sequence
from typing import Literal, TypeAlias

from centroidkv.types import Drafts

Kind: TypeAlias = Literal["repeat", "match"]

__all__ = ["Drafter", "Kind", "Pace"]

MOST_TOKENS = 48
LONGEST_MATCH, SHORTEST_MATCH = 4, 2
# Seen before anything was measured: how often a guessed token is right, in how many guesses.
_PRIOR: dict[Kind, tuple[float, float]] = {"repeat": (9.0, 10.0), "match": (4.0, 10.0)}
_FADE = 0.98  # of the weight of earlier guesses, for each new one
_NEWEST = 0.1  # weight of the newest time
_PRIOR_SLOPE = 0.12  # of one more token, in forwards of one
# What a draft must promise to save, in forwards of one, so that noise does not choose it.
_LEAST_GAIN = 0.1


class Drafter:
    """Guesses how one answer goes on.

    An earlier answer to the very same prompt goes first; where the answer leaves it, the longest
    match of the last few tokens in the cluster's earlier answers, this answer and the prompt.
    """

    def __init__(self, drafts: Drafts) -> None:
        self._repeat = drafts.repeat
        self._answer: list[int] = []
        self._is_repeat = bool(drafts.repeat)
        self._texts = [*map(list, drafts.answers), list(drafts.prompt)]
        self._places: list[dict[tuple[int, ...], tuple[int, int]]] | None = None

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


class Pace:
    """How many guessed tokens are worth verifying, from measured times and measured luck.

    Safe for many threads; one a model, since both belong to model and machine.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._luck = {kind: list(prior) for kind, prior in _PRIOR.items()}
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

    def guessed(self, kind: Kind, *, is_right: bool) -> None:
        """Note whether a guessed token that was judged was right."""
        with self._lock:
            luck = self._luck[kind]
            luck[0] = _FADE * luck[0] + is_right
            luck[1] = _FADE * luck[1] + 1

    def length(self, kind: Kind, most: int, *, behind: int = 1) -> int:
        """Return how many guessed tokens to run behind `behind` that must be run anyway.

        The number that saves most time, or 0 where none saves any.
        """
        with self._lock:
            rate = min(0.99, self._luck[kind][0] / self._luck[kind][1])
            step = self._cost(1)
            start = self._cost(behind)
            best, best_saved, right, chance = 0, _LEAST_GAIN * step, 0.0, 1.0
            for extra in range(1, min(most, MOST_TOKENS) + 1):
                chance *= rate
                right += chance
                saved = right * step - (self._cost(behind + extra) - start)
                if saved > best_saved:
                    best, best_saved = extra, saved
        return best

    def _cost(self, num_tokens: int) -> float:
        """Return the seconds of a forward, between the sizes that were measured."""
        known = sorted(self._costs.values())
        if not known:
            return 1 + _PRIOR_SLOPE * (num_tokens - 1)
        below = [c for c in known if c[0] <= num_tokens]
        above = [c for c in known if c[0] > num_tokens]
        if not below:
            return above[0][1]
        tokens, seconds = below[-1]
        if not above:
            return seconds * (
                1 + _PRIOR_SLOPE * (num_tokens - tokens) / (1 + _PRIOR_SLOPE * tokens)
            )
        further, dearer = above[0]
        share = (num_tokens - tokens) / (further - tokens)
        return seconds + share * (max(dearer, seconds) - seconds)
