"""Behind an answer: passages that were seen for the first time are computed for the next one.

Owns a thread of its own, since this computes and must hold up neither answers nor writes. What
waits is bounded; what does not fit is dropped and counted, for the passage will come again.
"""

import contextlib
import logging
import threading
from collections.abc import Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial

from centroidkv.passage_store import BlendingModel, PassageStore, computed
from centroidkv.prompt_heads import Head, PromptHeads
from centroidkv.store import Store

_log = logging.getLogger("centroidkv")

MOST_WAITING = 32  # prompts

__all__ = ["PassageLearner"]


class PassageLearner:
    """Fills the passage store of one engine."""

    def __init__(
        self, store: Store, model: BlendingModel, passages: PassageStore, heads: PromptHeads
    ) -> None:
        self._store = store
        self._model = model
        self._passages = passages
        self._heads = heads
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="centroidkv-passages")
        self._waiting = 0
        self._lock = threading.Lock()

    def submit(self, before: Head, passages: Sequence[Head]) -> bool:
        """Learn, later, the passages of a prompt that begins with the tokens `before` them."""
        with self._lock:
            if self._waiting >= MOST_WAITING:
                self._count("dropped_passages")
                return False
            self._waiting += 1
        with contextlib.suppress(RuntimeError):  # closed meanwhile
            self._thread.submit(self._learn, before, passages)
        return True

    def _learn(self, before: Head, passages: Sequence[Head]) -> None:
        try:
            head = self._heads.note(before)
            if head is not None:
                self.fill(head, passages)
        except Exception as error:  # noqa: BLE001 - whatever it is, it is not the answer's
            _log.warning("passages were not computed ahead: %s", error)
            self._count("failed_passages")
        finally:
            with self._lock:
                self._waiting -= 1

    def fill(self, head: Head, passages: Iterable[Head]) -> int:
        """Compute those passages that are not stored behind a head; return their tokens."""
        missing = [p for p in dict.fromkeys(passages) if not self.is_stored(head, p)]
        if not missing:
            return 0  # the head alone is not worth computing
        for token_ids, blocks in zip(missing, computed(self._model, head, missing), strict=True):
            pieces = self._passages.pieces(head, token_ids, blocks)
            self._passages.keep(pieces)
            size = sum(b.num_bytes for b in blocks)
            write = partial(self._passages.persist, pieces)
            self._store.writer.submit(write, num_bytes=size, wait=True)
        return sum(map(len, missing))

    def is_stored(self, head: Head, token_ids: Head) -> bool:
        """Tell whether the whole passage is there."""
        return self._passages.find(head, token_ids).num_tokens == len(token_ids)

    def _count(self, name: str) -> None:
        if not self._store.read_only:
            manifest = self._store.blocks.disk.manifest
            self._store.writer.submit(lambda: manifest.count([name]))

    def finish(self) -> None:
        """Wait until what was filled is on disk."""
        self._store.writer.flush()

    def flush(self) -> None:
        """Wait until everything submitted so far is computed."""
        with contextlib.suppress(RuntimeError):
            self._thread.submit(lambda: None).result()

    def close(self) -> None:
        """Finish what is under way and drop the rest."""
        self._thread.shutdown(wait=True, cancel_futures=True)
