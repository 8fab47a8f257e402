"""Where in a rendered prompt its passages stand, as ranges of its tokens.

A passage's unit of reuse is the very tokens of its range. A token that straddles a passage's
border belongs to no passage: two prompts in which a border is tokenized otherwise have different
units, and neither is wrong. Knows nothing of KV.
"""

from bisect import bisect_left
from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

from centroidkv.reasons import BlendProblem
from centroidkv.types import Prompt

# Placing fewer tokens than this gains nothing.
LEAST_TOKENS = 16

__all__ = ["LEAST_TOKENS", "PassageLayout", "Span", "Unit", "locate"]


@dataclass(frozen=True, slots=True)
class Unit:
    """A passage's tokens in a prompt, and its `lead`: those before them that go with it."""

    token_ids: tuple[int, ...]
    lead: tuple[int, ...] = ()


@dataclass(frozen=True, slots=True)
class Span:
    """The prompt tokens [start, stop) are those of one passage.

    The `border` tokens before them reach over its beginning.
    """

    start: int
    stop: int
    border: int = 0

    @property
    def begin(self) -> int:
        """Where the border begins."""
        return self.start - self.border

    def unit(self, token_ids: tuple[int, ...]) -> Unit:
        """Return the passage's tokens in a prompt, led by its border."""
        return Unit(token_ids[self.start : self.stop], token_ids[self.begin : self.start])


@dataclass(frozen=True, slots=True)
class PassageLayout:
    """Passages in the order of the prompt; `head` tokens come wholly before the first one.

    `problem` says why there are none, or not all.
    """

    head: int = 0
    spans: tuple[Span, ...] = ()
    problem: BlendProblem | None = None


class _Place(NamedTuple):
    """Characters [start, stop) of the prompt's text."""

    start: int
    stop: int


@dataclass(frozen=True, slots=True)
class _Places:
    found: tuple[_Place, ...]
    problem: BlendProblem | None = None


def locate(
    prompt: Prompt, texts: Sequence[str], *, question: str, marker: str | None = None
) -> PassageLayout:
    """Find the passages of a prompt.

    Args:
        prompt: The prompt as the model gets it.
        texts: The passages that a retrieval noted.
        question: The question in the prompt, "" if it is not known.
        marker: What stands before each passage and behind the last one. Where it occurs it goes
            before `texts`.
    """
    if marker and marker in prompt.text:
        places = _between(prompt.text, marker, question)
    else:
        places = _places_of(prompt.text, texts)
    if not places.found:
        return PassageLayout(problem=places.problem or "no_passages")
    if question and 0 <= prompt.text.rfind(question) < places.found[0].start:
        return PassageLayout(problem="question_before_context")
    spans = [_span(prompt, place) for place in places.found]
    long = tuple(s for s in spans if s.stop - s.start >= LEAST_TOKENS)
    problem = places.problem or (None if long else "too_little")
    return PassageLayout(long[0].begin if long else 0, long, problem)


def _between(text: str, marker: str, question: str) -> _Places:
    """Return what stands between one marker and the next."""
    if marker in question:
        return _Places((), "marker_in_question")
    places: dict[str, _Place] = {}
    problem: BlendProblem | None = None
    begin = text.find(marker) + len(marker)
    while (end := text.find(marker, begin)) >= 0:
        inner = text[begin:end]
        passage = inner.strip()
        if passage in places:
            problem = "passage_repeated"
        elif passage:
            start = begin + len(inner) - len(inner.lstrip())
            places[passage] = _Place(start, start + len(passage))
        begin = end + len(marker)
    return _Places(tuple(places.values()), problem)


def _places_of(text: str, passages: Sequence[str]) -> _Places:
    """Return one place of each passage, the longest first, so that none lies within another."""
    places: list[_Place] = []
    problem: BlendProblem | None = None
    stripped = {p.strip() for p in passages} - {""}
    for part in sorted(stripped, key=lambda p: (-len(p), p)):
        place = _free_place(text, part, places)
        if place is not None:
            places.append(place)
            if _free_place(text, part, places) is not None:
                problem = problem or "passage_repeated"
        elif part in text:
            problem = problem or "passages_overlap"
    return _Places(tuple(sorted(places)), problem)


def _free_place(text: str, part: str, taken: Sequence[_Place]) -> _Place | None:
    start = text.find(part)
    while start >= 0:
        stop = start + len(part)
        hit = next((p for p in taken if start < p.stop and p.start < stop), None)
        if hit is None:
            return _Place(start, stop)
        start = text.find(part, max(start + 1, hit.stop))
    return None


def _span(prompt: Prompt, place: _Place) -> Span:
    """Return the tokens that lie within a place wholly."""
    start, stop = prompt.tokens_before(place.start), prompt.tokens_before(place.stop)
    begins_there = start < len(prompt) and prompt.offsets[start] == place.start
    border = 0 if begins_there or not start else start - _first_of(prompt, start - 1)
    ends_there = stop < len(prompt) and prompt.offsets[stop] == place.stop
    if not ends_there and place.stop < len(prompt.text) and stop > start:
        # The last token goes on behind the passage.
        stop = _first_of(prompt, stop - 1)
    return Span(start, max(start, stop), border)


def _first_of(prompt: Prompt, number: int) -> int:
    """Return the first token of the character that a token begins in."""
    return bisect_left(prompt.offsets, prompt.offsets[number])
