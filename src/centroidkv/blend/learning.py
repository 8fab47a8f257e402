"""Behind an answer: passages that were seen for the first time are computed for the next one.

Owns a thread of its own, since this computes and must hold up neither answers nor writes. It runs
while something waits, and ends after the passage under way when the program does. What waits is
bounded; what does not fit is dropped and counted, for the passage will come again.
"""

import logging
import threading
from collections import deque
from collections.abc import Iterable, Sequence
from contextlib import closing
from dataclasses import dataclass
from functools import partial

from centroidkv.blend.computing import computed, prefilled
from centroidkv.blend.heads import Head, PromptHeads, TokenIds
from centroidkv.blend.passages import BlendingModel, PassageStore
from centroidkv.blend.spans import Unit
from centroidkv.error_kinds import kind_of
from centroidkv.kv.blocks import Piece
from centroidkv.kv.tiers import TieredBlocks
from centroidkv.serving.learning import Learner
from centroidkv.types import Passage

_log = logging.getLogger("centroidkv")

MOST_WAITING = 32  # prompts
# Tokens between the head and a prompt's first passage, such as a title. More are seldom its own.
MOST_LEADING = 64

__all__ = ["MOST_LEADING", "PassageLearner", "Shown"]


@dataclass(frozen=True, slots=True)
class Shown:
    """What a prompt shows: the tokens before its first passage, and all passages in order."""

    before: TokenIds
    units: Sequence[Unit]

    def firsts(self, head: Head) -> list[Unit]:
        """Return the passages that prompts with a head may begin with, each with what leads it.

        All of them, if the first one stands right behind the head. If something stands between,
        nothing tells what would lead the others.
        """
        lead = self.before[len(head.token_ids) :]
        if not lead:
            return list(self.units)
        first = self.units[0]
        led = Unit(first.token_ids, (*lead, *first.lead))
        return [led] if len(led.lead) <= MOST_LEADING else []


class PassageLearner:
    """Fills the passage store of one engine; `residence` names its model's arenas.

    Passages are computed behind others. What a prompt begins with, its head and first passage, is
    computed and kept as any prompt's KV is, too, for an exact lookup to find.
    """

    def __init__(
        self,
        learner: Learner,
        model: BlendingModel,
        passages: PassageStore,
        heads: PromptHeads,
        *,
        residence: str,
    ) -> None:
        self._learner = learner
        self._store = learner.store
        self._blocks = learner.store.blocks
        self._computed = partial(computed, model, namespace=residence)
        self._prefilled = partial(prefilled, model, namespace=residence)
        self._passages = passages
        self._heads = heads
        self._thread: threading.Thread | None = None
        self._waiting: deque[Shown] = deque()
        self._is_closed = False
        self._lock = threading.RLock()

    def submit(self, shown: Shown) -> bool:
        """Learn, later, the passages of a prompt."""
        with self._lock:
            if self._is_closed:
                return False
            if len(self._waiting) >= MOST_WAITING:
                self._count("dropped_passages")
                return False
            self._waiting.append(shown)
            if self._thread is None:
                self._thread = threading.Thread(target=self._run, name="centroidkv-passages")
                self._thread.start()
        return True

    def note(self, passages: Sequence[Passage]) -> None:
        """Note ids and texts of passages that are about to be filled."""
        self._learner.note_passages(passages)

    def _run(self) -> None:
        while True:
            with self._lock:
                if self._must_end or not self._waiting:
                    self._thread = None
                    return
                shown = self._waiting.popleft()
            self._learn(shown)

    @property
    def _must_end(self) -> bool:
        # The interpreter waits for this thread when the program has ended.
        return self._is_closed or not threading.main_thread().is_alive()

    def _learn(self, shown: Shown) -> None:
        passages = [u.token_ids for u in shown.units]
        try:
            head = self._heads.note(shown.before)
            if head is not None:
                num = sum(map(len, passages))
                head = self._heads.with_run_up(head, passages, shown_tokens=num)
            if head is not None:
                self.fill(head, passages)
                self.fill_firsts(head, shown.firsts(head))
        except Exception as error:  # noqa: BLE001 - whatever it is, it is not the answer's
            _log.warning("passages were not computed ahead: %s", kind_of(error))
            self._count("failed_passages")

    def fill(self, head: Head, passages: Iterable[TokenIds]) -> int:
        """Compute passages that are not stored, behind a head and others; return their tokens.

        Ends where the head is forgotten meanwhile.
        """
        missing = [p for p in dict.fromkeys(passages) if not self._passages.holds(head, p)]
        if not missing or self._must_end:
            return 0  # the head alone is not worth computing
        filled = 0
        with closing(self._computed(head, missing)) as found:
            for token_ids, blocks in zip(missing, found, strict=True):
                pieces = self._passages.pieces(head, token_ids, blocks)
                if not self._keep(head, pieces, self._passages):
                    break
                filled += len(token_ids)
                if self._must_end:
                    break
        return filled

    def fill_firsts(self, head: Head, passages: Iterable[Unit]) -> None:
        """Compute what prompts begin with: a head, and one of some passages with its lead.

        Ends as `fill` does.
        """
        for passage in dict.fromkeys(passages):
            before = (*head.token_ids, *passage.lead)
            prompt = (*before, *passage.token_ids)
            stored = self._num_stored(prompt)
            if stored == len(prompt):
                continue
            if self._must_end:
                break
            with self._prefilled(before, passage.token_ids) as sequence:
                pieces = self._learner.cut(prompt, sequence, start=stored)
            if not self._keep(head, pieces, self._blocks):
                break

    def _num_stored(self, prompt: TokenIds) -> int:
        """Return how many tokens of a prompt's beginning are stored as they are in it."""
        # One token more, since a match leaves the last one to compute.
        return self._blocks.match(self._learner.namespace, (*prompt, 0)).num_tokens

    def _keep(self, head: Head, pieces: Sequence[Piece], into: PassageStore | TieredBlocks) -> bool:
        """Keep what was computed behind a head, and say so; not if that is forgotten by now."""

        def persist() -> None:
            with self._heads.holding(head) as is_held:
                if is_held:
                    into.persist(pieces)

        with self._heads.holding(head) as is_held:
            if is_held:
                into.keep(pieces)
        if is_held:
            size = sum(p.block.num_bytes for p in pieces)
            self._store.writer.submit(persist, num_bytes=size, wait=True)
        return is_held

    def is_stored(self, head: Head, token_ids: TokenIds) -> bool:
        """Tell whether the whole passage is there, behind others."""
        return self._passages.holds(head, token_ids)

    def _count(self, name: str) -> None:
        if not self._store.read_only:
            manifest = self._store.blocks.disk.manifest
            self._store.writer.submit(lambda: manifest.count([name]))

    def finish(self) -> None:
        """Wait until what was filled is on disk."""
        self._store.writer.flush()

    def flush(self) -> None:
        """Wait until everything submitted so far is computed."""
        while (thread := self._thread) is not None:
            thread.join()

    def close(self) -> None:
        """Finish the passage under way and drop the rest."""
        with self._lock:
            self._is_closed = True
            self._waiting.clear()
        self.flush()
