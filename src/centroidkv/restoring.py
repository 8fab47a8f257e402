"""Step 3 and half of step 4 of a request: match the longest stored prefix and restore it.

Owns how stored KV gets into a running sequence. Knows nothing of text, and not how it is stored.
"""

import sqlite3
import time
from collections.abc import Iterator, Sequence

from centroidkv.kv.blocks import BLOCK_TOKENS, Step
from centroidkv.kv.tiers import TieredBlocks
from centroidkv.learning import Learner
from centroidkv.protocols import CausalModel, RunningSequence
from centroidkv.request import Run
from centroidkv.types import KVBlock

LONG_PROMPT = 512

__all__ = ["Restorer"]


class Restorer:
    """Puts the longest stored prefix of a prompt into its sequence."""

    def __init__(self, model: CausalModel, blocks: TieredBlocks, learner: Learner) -> None:
        self._model = model
        self._blocks = blocks
        self._learner = learner

    def restore(self, run: Run, sequence: RunningSequence) -> None:
        """Put the longest stored prefix into the sequence; on any fault, what is sound of it.

        What the sequence holds already is not moved.
        """
        started = time.perf_counter()
        run.reused = sequence.num_tokens
        run.tier = "memory" if run.reused else "none"
        try:
            found = self._blocks.match(self._learner.namespace, run.prompt.token_ids)
            run.match = found.on_grid(self._model.grid_tokens)
        except (sqlite3.Error, OSError) as error:
            run.problem = "store_failed"
            self._learner.fault("store_failed", error)
            return
        missing = [s for s in run.match.steps if s.stop > run.reused]
        if run.match.num_tokens < BLOCK_TOKENS and len(run.prompt) > LONG_PROMPT:
            missing = []  # attention behind a prefix costs more than these few tokens
        tier = self._blocks.farthest([s.id for s in missing])
        with self._blocks.disk.leases.hold(s.id for s in missing):
            sequence.restore(self._loaded(run, missing))
        run.reused = sequence.num_tokens
        if run.reused:
            run.tier = tier
        run.load_s = time.perf_counter() - started

    def _loaded(self, run: Run, missing: Sequence[Step]) -> Iterator[KVBlock]:
        held = run.reused
        blocks = self._blocks.in_turn([s.id for s in missing])
        for step in missing:
            try:
                block = next(blocks)
            except sqlite3.Error as error:
                self._learner.fault("store_failed", error)
                block = None
            if block is None:
                run.problem = "block_damaged"
                return
            yield block.part(max(0, held - step.start), step.stop - step.start)
