"""The ring of request records: how a question reaches the model in a plain LCEL chain.

The retriever wrapper puts (question, route, passages); the model takes the latest record whose
passages occur in its prompt. A ContextVar set in the retriever's branch is not seen by the model.
"""

import threading
from collections import deque
from collections.abc import Sequence

from centroidkv.types import Record

__all__ = ["RecordRing"]


class RecordRing:
    """The last records of one tenant, bounded. Safe for many threads."""

    def __init__(self, size: int) -> None:
        self._records: deque[Record] = deque(maxlen=size)
        self._lock = threading.Lock()

    def put(self, record: Record) -> None:
        with self._lock:
            self._records.append(record)

    def all(self) -> list[Record]:
        """Return the records, oldest first."""
        with self._lock:
            return list(self._records)

    def forget(self, records: Sequence[Record]) -> None:
        """Let go of records."""
        gone = {id(record) for record in records}
        with self._lock:
            kept = [r for r in self._records if id(r) not in gone]
            self._records.clear()
            self._records.extend(kept)

    def find(self, text: str) -> Record | None:
        """Return the latest record whose passages all occur in `text`.

        Where a chain drops passages behind the retriever, the latest record whose question and
        first passage occur is taken instead.
        """
        with self._lock:
            records = list(self._records)[::-1]
        second: Record | None = None
        for record in records:
            texts = [t for t in (p.text.strip() for p in record.passages) if t]
            if not texts:
                continue
            if all(t in text for t in texts):
                return record
            cut = record.question in text and texts[0] in text
            if second is None and cut:
                second = record
        return second
