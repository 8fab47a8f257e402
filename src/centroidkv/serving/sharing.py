"""Restoring a prefix that another request may be computing just now, in any process.

Owns when a request waits for another one's KV, and that its own is handed on as soon as it is
computed rather than when the answer ends. Knows neither lock files nor decoding.
"""

import sqlite3
import time
from collections.abc import Callable, Sequence

from centroidkv.kv.blocks import BLOCK_TOKENS, Piece, chain
from centroidkv.protocols import CausalModel, RunningSequence
from centroidkv.serving.learning import Learner
from centroidkv.serving.request import Run
from centroidkv.serving.restoring import Restorer
from centroidkv.serving.single_flight import Flight, Start

# Fewer missing tokens are computed sooner than a lock, a look and a copy are worth.
LEAST_TOKENS = 2 * BLOCK_TOKENS
# Waiting may take so many times what computing would: the other one writes its blocks, too.
WAIT_SHARE = 1.5

__all__ = ["Sharing", "claimed", "first_missing", "path_of", "persist", "wait_for"]


def first_missing(namespace: str, token_ids: tuple[int, ...], held: int) -> str | None:
    """Return the id of the first block that is not held, None where too little is missing."""
    start = held - held % BLOCK_TOKENS
    if len(token_ids) - start < LEAST_TOKENS:
        return None
    return chain(namespace, token_ids[: start + BLOCK_TOKENS], start)[0].id


def path_of(namespace: str, token_ids: tuple[int, ...]) -> list[str]:
    """Return the ids of all blocks that hold tokens, in order."""
    return [link.id for link in chain(namespace, token_ids)]


def wait_for(learner: Learner, num_tokens: int, *, behind: int = 0) -> float:
    """Return how many seconds to wait at most for tokens that another one computes."""
    store = learner.store
    computing_s = store.prefill_speed.seconds(num_tokens, behind=behind) or 0.0
    return max(store.flights.patience_s, WAIT_SHARE * computing_s)


def claimed(
    learner: Learner,
    *,
    missing: Callable[[], str | None],
    path: Callable[[], Sequence[str]],
    look: Callable[[], None],
    wait_s: float,
) -> Start:
    """Wait until all that is missing is there, or is this caller's to compute, or time is up.

    Args:
        learner: Whose store is waited for, and where waiting is counted.
        missing: Names the first missing block, None where nothing is worth waiting for.
        path: Names all blocks of the prompt, in order.
        look: Takes what has come into the store.
        wait_s: Seconds, in all.
    """
    store, end, has_waited = learner.store, time.monotonic() + wait_s, False
    while (block := missing()) is not None:
        start = store.flights.start(block, path=path(), wait_s=max(0.0, end - time.monotonic()))
        if start.has_waited and not has_waited:
            has_waited = True
            learner.tally("waited_fills")
        if start.flight is None:
            if start.has_waited:
                learner.tally("abandoned_waits")
                look()
            return Start(None, has_waited)
        if not start.has_waited and not is_stored(learner, block):
            return start
        look()  # it may have come since it was found missing
        if missing() == block:
            return Start(start.flight, has_waited)
        start.land()
    return Start(None, has_waited)


def is_stored(learner: Learner, block: str) -> bool:
    """Tell whether a block is on disk; where that cannot be said, it is not."""
    try:
        return learner.store.blocks.disk.has(block)
    except sqlite3.Error:
        return False


def persist(learner: Learner, pieces: Sequence[Piece], flight: Flight | None) -> None:
    """Put blocks onto disk; who waits for them gets each as soon as it is there."""
    if flight is None:
        learner.store.blocks.persist(pieces)
        return
    following = [piece.id for piece in pieces[1:]]
    for piece, behind in zip(pieces, [*following, None], strict=True):
        with flight.writing(behind):
            learner.store.blocks.persist([piece])


class Sharing:
    """Lets a request compute what nobody else computes, and have the rest from the store."""

    def __init__(self, model: CausalModel, learner: Learner, restorer: Restorer) -> None:
        self._grid = max(BLOCK_TOKENS, model.grid_tokens)
        self._learner = learner
        self._restorer = restorer

    def restore(self, run: Run, sequence: RunningSequence) -> Flight | None:
        """Restore the longest stored prefix; return the right to compute what is missing of it.

        None where there is nothing to share, or nobody to wait for any longer.
        """
        self._restorer.restore(run, sequence)
        if self._missing(run, sequence) is None:
            return None
        start = claimed(
            self._learner,
            missing=lambda: self._missing(run, sequence),
            path=lambda: path_of(self._learner.namespace, run.prompt.token_ids[: self._end(run)]),
            look=lambda: self._restorer.look_again(run, sequence),
            wait_s=self._wait(run, sequence),
        )
        if start.flight is not None:
            # Noted now, so that other processes do not evict what the new blocks lie behind.
            self._learner.store.blocks.touch([s.id for s in run.match.steps])
        return start.flight

    def hand_on(self, run: Run, sequence: RunningSequence, flight: Flight) -> None:
        """Give the full blocks of a computed prompt to the store, and then the flight back."""
        kept = run.prompt.token_ids[: self._end(run)]
        pieces = self._learner.cut(kept, sequence, start=self._stored(run))
        self._learner.store.blocks.keep(pieces)
        run.handed_on = len(kept)
        run.token_bytes = pieces[0].token_bytes

        def write() -> None:
            try:
                if self._learner.has_room(run.record, run.prompt, run.where, run.token_bytes):
                    persist(self._learner, pieces, flight)
            finally:
                flight.land()

        size = sum(p.block.num_bytes for p in pieces)
        if not self._learner.store.writer.submit(write, num_bytes=size):
            run.handed_on = 0  # the queue is full now; there may be room when the answer ends
            flight.land()

    def _stored(self, run: Run) -> int:
        """Count the leading tokens that are still on disk; other processes evict as they please."""
        end = 0
        for step in run.match.steps:
            if step.stop > run.sound or not is_stored(self._learner, step.id):
                break
            end = step.stop
        return end

    def _end(self, run: Run) -> int:
        """Count the tokens in full blocks that may be stored, without the prompt's last one.

        That one is computed by every answer.
        """
        most = len(run.prompt) - 1
        if run.storable_tokens is not None:
            most = min(most, run.storable_tokens)
        return most - most % self._grid

    def _missing(self, run: Run, sequence: RunningSequence) -> str | None:
        held = sequence.num_tokens
        if run.problem is not None:
            # Evicted while it was read, say: others miss blocks that were computed here already.
            held = min(held, self._stored(run))
        return first_missing(self._learner.namespace, run.prompt.token_ids[: self._end(run)], held)

    def _wait(self, run: Run, sequence: RunningSequence) -> float:
        held, left_s = sequence.num_tokens, run.left_s
        wait_s = wait_for(self._learner, self._end(run) - held, behind=held)
        # Half of a request's time is left for computing what did not come.
        return wait_s if left_s is None else min(wait_s, max(0.0, left_s / 2))
