"""How a blended prompt gets its KV: stored passages are placed, everything else is computed.

Owns one request's choice of passages. Any fault costs time: what cannot be placed is computed.
"""

import sqlite3
import time
from collections.abc import Callable, Generator, Iterable
from contextlib import closing
from dataclasses import dataclass, field, replace
from itertools import chain
from typing import cast

from centroidkv.blend.heads import Head
from centroidkv.blend.learning import MOST_LEADING
from centroidkv.blend.passages import PassageStore
from centroidkv.blend.spans import LEAST_TOKENS, PassageLayout, Span
from centroidkv.kv.blocks import BLOCK_TOKENS, Match
from centroidkv.kv.tiers import Place
from centroidkv.placement import BlendReport, PlacedPassage
from centroidkv.protocols import BlendingSequence, RunningSequence
from centroidkv.reasons import BlendProblem
from centroidkv.serving.request import Run
from centroidkv.types import Drafts, Prompt, Usage

# Below so many placed tokens a prefill costs no more, even where nothing else is computed.
LEAST_PLACED = 64
_FARTHER = ("none", "memory", "disk", "remote")

__all__ = ["BlendFilling"]


@dataclass(frozen=True, slots=True)
class _Stored:
    """A passage of the prompt, and what of it is stored: its first `match.num_tokens` tokens."""

    span: Span
    match: Match


@dataclass(slots=True)
class BlendFilling:
    """Fills the sequence of one request. `problem` says why less was placed than stands there."""

    passages: PassageStore
    share: float | None
    fault: Callable[[str, Exception], None]
    problem: BlendProblem | None = None
    unseen: list[Span] = field(default_factory=list)
    _first: Span | None = None
    _stored: list[_Stored] = field(default_factory=list)
    _report: BlendReport | None = None

    def look_up(self, prompt: Prompt, layout: PassageLayout, head: Head | None) -> None:
        """Find which passages are stored behind the prompt's head."""
        if head is None:
            self.unseen = list(layout.spans)
            self.problem = self.problem or "head_unseen"
            return
        if layout.spans[0].start - len(head.token_ids) <= MOST_LEADING:
            self._first = layout.spans[0]
        for span in layout.spans:
            try:
                match = self.passages.find(head, span.unit(prompt.token_ids).token_ids)
            except (sqlite3.Error, OSError) as error:
                self.problem = "store_failed"
                self.fault("store_failed", error)
                return
            self._stored.append(_Stored(span, match))
            if match.num_tokens < span.stop - span.start:
                self.unseen.append(span)
                self.problem = self.problem or "passages_unseen"

    def fill(self, run: Run, sequence: RunningSequence, drafts: Drafts | None) -> None:
        """Compute the prompt behind what the sequence holds, but for the passages placed there."""
        rest = run.prompt.token_ids[run.held :]
        if self._first is not None and run.held < self._first.stop:
            self.unseen.append(self._first)  # not as it is in this place
        with closing(self._loaded(run)) as loaded:
            first = next(loaded, None)
            if first is not None:
                blending = cast("BlendingSequence", sequence)
                # Behind the first placed token nothing is exact, whatever comes of the blend.
                run.exact_tokens = first.start
                try:
                    if first.start > run.held:  # by itself: what is blended is run more than once
                        sequence.prefill(run.prompt.token_ids[run.held : first.start])
                    self._report = blending.blend(
                        run.prompt.token_ids[first.start :],
                        chain([first], loaded),
                        share=self.share,
                        drafts=drafts,
                    )
                    return
                except Exception as error:  # noqa: BLE001 - whatever it is, the rest can be computed
                    self.problem = "blend_failed"
                    self.fault("blend_failed", error)
                    blending.truncate(run.held)
        sequence.prefill(rest, drafts)

    def _loaded(self, run: Run) -> Generator[PlacedPassage]:
        """Load the stored passages that lie behind the exact prefix, one after the other."""
        started = time.perf_counter()
        # The last token of the prompt is computed for its logits.
        wanted = [w for s in self._stored if (w := _behind(s, run.held, len(run.prompt) - 1))]
        if wanted and sum(w.stop - w.start for w in wanted) < LEAST_PLACED:
            self.problem = self.problem or "too_little"
            wanted = []
        parts = [(w.match, w.start - w.span.start) for w in wanted]
        try:
            places = [self.passages.places(match) for match, _ in parts]
            with closing(self.passages.load(parts)) as blocks:
                for passage, own, block in zip(wanted, places, blocks, strict=True):
                    run.load_s += time.perf_counter() - started
                    if block is None:
                        self.problem = "block_damaged"
                        self.unseen.append(passage.span)
                    else:
                        _note_places(run, own)
                        own_part = block.part(0, passage.stop - passage.start)
                        yield PlacedPassage(passage.start, passage.stop, own_part)
                    started = time.perf_counter()
        except (sqlite3.Error, OSError) as error:
            self.fault("store_failed", error)
            self.problem = "store_failed"

    def told(self, run: Run, usage: Usage) -> Usage:
        """Say what was blended, or why nothing was."""
        report = self._report
        usage = replace(usage, blend_problem=self.problem)
        if report is None:
            return usage
        left = len(run.prompt) - run.held - report.placed_tokens
        return replace(
            usage,
            outcome="hit" if left <= BLOCK_TOKENS + run.where.question else "partial",
            reason="blended",
            approximate=True,
            blended_tokens=report.placed_tokens,
            recomputed_tokens=report.again_tokens,
        )


def _note_places(run: Run, places: Iterable[Place]) -> None:
    """Note where a passage came from."""
    for place in places:
        run.tier = max(run.tier, place.tier, key=_FARTHER.index)
        if place.tier != "memory" and place.sizes:
            level, size = next(iter(place.sizes.items()))
            run.loaded_bytes += size
            run.levels.add(level)


@dataclass(frozen=True, slots=True)
class _Wanted:
    """The prompt tokens [start, stop), to be taken from a stored passage."""

    start: int
    stop: int
    span: Span
    match: Match


def _behind(stored: _Stored, reused: int, end: int) -> _Wanted | None:
    """Return what of a stored passage lies in [reused, end), None if that is too little."""
    span = stored.span
    start = max(span.start, reused)
    stop = min(span.start + stored.match.num_tokens, end)
    if stop - start < LEAST_TOKENS:
        return None
    return _Wanted(start, stop, span, stored.match)
