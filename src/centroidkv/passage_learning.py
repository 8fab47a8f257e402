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
from functools import partial

from centroidkv.kv.blocks import Piece
from centroidkv.passage_computing import computed
from centroidkv.passage_store import BlendingModel, PassageStore
from centroidkv.prompt_heads import Head, PromptHeads, TokenIds
from centroidkv.store import Store

_log = logging.getLogger("centroidkv")

MOST_WAITING = 32  # prompts

__all__ = ["PassageLearner"]


class PassageLearner:
    """Fills the passage store of one engine; `residence` names its model's arenas."""

    def __init__(
        self,
        store: Store,
        model: BlendingModel,
        passages: PassageStore,
        heads: PromptHeads,
        *,
        residence: str,
    ) -> None:
        self._store = store
        self._computed = partial(computed, model, namespace=residence)
        self._passages = passages
        self._heads = heads
        self._thread: threading.Thread | None = None
        self._waiting: deque[tuple[TokenIds, Sequence[TokenIds]]] = deque()
        self._is_closed = False
        self._lock = threading.RLock()

    def submit(self, before: TokenIds, passages: Sequence[TokenIds]) -> bool:
        """Learn, later, the passages of a prompt that begins with the tokens `before` them."""
        with self._lock:
            if self._is_closed:
                return False
            if len(self._waiting) >= MOST_WAITING:
                self._count("dropped_passages")
                return False
            self._waiting.append((before, passages))
            if self._thread is None:
                self._thread = threading.Thread(target=self._run, name="centroidkv-passages")
                self._thread.start()
        return True

    def _run(self) -> None:
        while True:
            with self._lock:
                if self._must_end or not self._waiting:
                    self._thread = None
                    return
                before, passages = self._waiting.popleft()
            self._learn(before, passages)

    @property
    def _must_end(self) -> bool:
        # The interpreter waits for this thread when the program has ended.
        return self._is_closed or not threading.main_thread().is_alive()

    def _learn(self, before: TokenIds, passages: Sequence[TokenIds]) -> None:
        try:
            head = self._heads.note(before)
            if head is not None:
                shown = sum(map(len, passages))
                head = self._heads.with_run_up(head, passages, shown_tokens=shown)
            if head is not None:
                self.fill(head, passages)
        except Exception as error:  # noqa: BLE001 - whatever it is, it is not the answer's
            _log.warning("passages were not computed ahead: %s", error)
            self._count("failed_passages")

    def fill(self, head: Head, passages: Iterable[TokenIds]) -> int:
        """Compute those passages that are not stored behind a head; return their tokens.

        Behind the head alone, too: as one of them stands where it is a prompt's first. Ends where
        the head is forgotten meanwhile.
        """
        once = list(dict.fromkeys(passages))
        return max(self._fill(head, behind, once) for behind in dict.fromkeys((head, head.alone)))

    def _fill(self, head: Head, behind: Head, passages: Sequence[TokenIds]) -> int:
        missing = [p for p in passages if not self._passages.holds(behind, p)]
        if not missing or self._must_end:
            return 0  # the head alone is not worth computing
        filled = 0
        with closing(self._computed(behind, missing)) as found:
            for token_ids, blocks in zip(missing, found, strict=True):
                pieces = self._passages.pieces(behind, token_ids, blocks)
                with self._heads.holding(head) as is_held:
                    if not is_held:
                        break
                    self._passages.keep(pieces)
                size = sum(b.num_bytes for b in blocks)
                write = partial(self._persist, head, pieces)
                self._store.writer.submit(write, num_bytes=size, wait=True)
                filled += len(token_ids)
                if self._must_end:
                    break
        return filled

    def _persist(self, head: Head, pieces: Sequence[Piece]) -> None:
        with self._heads.holding(head) as is_held:
            if is_held:
                self._passages.persist(pieces)

    def is_stored(self, head: Head, token_ids: TokenIds) -> bool:
        """Tell whether the whole passage is there, behind others and as the first."""
        return all(self._passages.holds(behind, token_ids) for behind in (head, head.alone))

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
