"""Step 3 and half of step 4 of a request: match the longest stored prefix and restore it.

Owns how stored KV gets into a running sequence: copied from memory, or streamed from the tiers
below it, where a part may be computed from its tokens instead. Knows nothing of text, and not how
blocks are stored.
"""

import sqlite3
import time
from collections.abc import Iterator, Sequence
from typing import Literal

from centroidkv.kv.bandwidth import Tier
from centroidkv.kv.blocks import BLOCK_TOKENS, Step
from centroidkv.kv.tiers import TieredBlocks
from centroidkv.protocols import CausalModel, RunningSequence
from centroidkv.serving.learning import Learner
from centroidkv.serving.meeting import Compute, Meeting, most_in_flight
from centroidkv.serving.reading import Readers
from centroidkv.serving.request import Run
from centroidkv.serving.streaming import Source
from centroidkv.types import KVBlock

LONG_PROMPT = 512
_SLOWER: tuple[Tier, ...] = ("memory", "disk", "remote")

__all__ = ["Restorer"]


class Restorer:
    """Puts the longest stored prefix of a prompt into its sequence."""

    def __init__(self, model: CausalModel, blocks: TieredBlocks, learner: Learner) -> None:
        self._model = model
        self._blocks = blocks
        self._learner = learner
        self._token_bytes = 0  # of KV in memory; 0 until a block was seen

    def restore(self, run: Run, sequence: RunningSequence) -> None:
        """Put the longest stored prefix into the sequence; on any fault, what is sound of it.

        What the sequence holds already is not moved.
        """
        started, computed_s = time.perf_counter(), run.prefill_s
        self._note_held(run, sequence)
        run.tier = "memory" if run.reused else "none"
        try:
            found = self._blocks.match(self._learner.namespace, run.prompt.token_ids)
            run.match = found.on_grid(self._model.grid_tokens)
        except (sqlite3.Error, OSError) as error:
            run.problem = "store_failed"
            self._learner.fault("store_failed", error)
            return
        missing = [s for s in run.match.steps if s.stop > sequence.num_tokens]
        if run.match.num_tokens < BLOCK_TOKENS and len(run.prompt) > LONG_PROMPT:
            missing = []  # attention behind a prefix costs more than these few tokens
        with self._blocks.disk.leases.hold(s.id for s in missing):
            if all(self._blocks.memory.has(s.id) for s in missing):
                self._copy(run, sequence, missing)
            else:
                self._stream(run, sequence, missing)
        run.load_s = time.perf_counter() - started - (run.prefill_s - computed_s)

    def look_again(self, run: Run, sequence: RunningSequence) -> None:
        """Restore what has come into the store since the last look."""
        load_s, tier = run.load_s, run.tier
        self.restore(run, sequence)
        run.load_s += load_s
        run.tier = _farther(run.tier, tier)

    def computed(self, run: Run, seconds: float, start: int, stop: int) -> None:
        """Note how long the prompt's tokens [start, stop) took to compute."""
        run.prefill_s += seconds
        self._learner.store.prefill_speed.timed(stop - start, seconds, behind=start)

    # all in memory

    def _copy(self, run: Run, sequence: RunningSequence, missing: Sequence[Step]) -> None:
        held = sequence.num_tokens
        sequence.restore(self._copied(run, missing, held))
        self._note_held(run, sequence)
        run.tier = "memory" if run.reused else "none"

    @staticmethod
    def _note_held(run: Run, sequence: RunningSequence) -> None:
        run.reused = sequence.num_tokens - run.recomputed
        if not run.recomputed:
            run.sound = sequence.num_tokens

    def _copied(self, run: Run, missing: Sequence[Step], held: int) -> Iterator[KVBlock]:
        for step in missing:
            block = self._blocks.memory.get(step.id)
            if block is None:  # gone in this moment
                run.problem = "block_damaged"
                return
            yield _part(block, step, held)

    # some below memory

    def _stream(self, run: Run, sequence: RunningSequence, missing: Sequence[Step]) -> None:
        """Load from the end and compute from the beginning, until the two meet."""
        held = sequence.num_tokens
        sources = self._sources(missing)
        meeting = Meeting(
            sources,
            self._learner.store.streaming,
            lambda: time.perf_counter() - run.begin,
            held=held,
            rest=(run.match.num_tokens, len(run.prompt)),
            unit=max(1, self._model.grid_tokens // BLOCK_TOKENS),
        )
        readers = Readers(
            meeting,
            lambda claim: self._load(missing[claim.number], claim.level),
            held=self._in_memory(missing, sources),
            num_threads=most_in_flight(sources),
        )
        with readers:
            while (move := readers.next()) is not None:
                if isinstance(move, Compute):
                    self._compute(run, sequence, move)
                    continue
                numbers = range(move.first, move.stop)
                sequence.restore(_part(readers.take(n), missing[n], held) for n in numbers)
                for number in numbers:
                    _note_loaded(run, sources[number], readers.levels.get(number))
                if sequence.num_tokens < missing[move.stop - 1].stop:
                    break  # a model that restores coarser pieces; it computes the rest
        run.reused = sequence.num_tokens - run.recomputed
        run.sound = min(run.sound, sequence.num_tokens) if run.recomputed else run.reused
        if readers.error is not None:
            self._learner.fault("store_failed", readers.error)
        if meeting.num_lost:
            run.problem = "block_damaged"

    def _load(self, step: Step, level: str) -> KVBlock | None:
        block = self._blocks.fetch(step.id, level)
        if block is not None:
            self._token_bytes = block.num_bytes // block.num_tokens
        return block

    def _sources(self, missing: Sequence[Step]) -> list[Source]:
        """Say where blocks are; where that cannot be said, they cannot be loaded."""
        try:
            places = [self._blocks.where(step.id) for step in missing]
        except (sqlite3.Error, OSError) as error:
            self._learner.fault("store_failed", error)
            places = [None] * len(missing)
        return [
            Source(
                step.start,
                step.stop,
                place.tier if place is not None else "memory",
                place.sizes if place is not None else {},
                (step.stop - step.start) * self._token_bytes,
            )
            for step, place in zip(missing, places, strict=True)
        ]

    def _in_memory(self, missing: Sequence[Step], sources: Sequence[Source]) -> dict[int, KVBlock]:
        """Return the blocks that are in memory, by their number."""
        found: dict[int, KVBlock] = {}
        for number, source in enumerate(sources):
            block = None
            if source.tier == "memory" and source.sizes:
                block = self._blocks.memory.get(missing[number].id)
            if block is not None:
                found[number] = block
        return found

    def _compute(self, run: Run, sequence: RunningSequence, move: Compute) -> None:
        started = time.perf_counter()
        sequence.prefill(run.prompt.token_ids[move.start : move.stop])
        self.computed(run, time.perf_counter() - started, move.start, move.stop)
        if not run.recomputed:
            run.sound = move.start
        run.recomputed += move.stop - move.start


def _part(block: KVBlock, step: Step, held: int) -> KVBlock:
    """Return the part of a block that a match uses and a sequence does not hold yet."""
    return block.part(max(0, held - step.start), step.stop - step.start)


def _farther(one: Tier | Literal["none"], other: Tier | Literal["none"]) -> Tier | Literal["none"]:
    """Return the slower of two tiers."""
    return max(one, other, key=lambda t: _SLOWER.index(t) if t != "none" else -1)


def _note_loaded(run: Run, source: Source, level: str | None) -> None:
    """Note where a block came from; what was in memory has no level here."""
    run.tier = _farther(run.tier, source.tier)
    if level is not None:
        run.loaded_bytes += source.sizes[level]
        run.levels.add(level)
