"""The ring of request records: how a question reaches the model in a plain LCEL chain.

The retriever wrapper puts (question, route, passages); the model looks for the record of its
prompt. A ContextVar set in the retriever's branch is not seen by the model. Requests at the same
time often have the same passages, so what tells their records apart is the question.
"""

import threading
import time
from collections import deque
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace

from centroidkv.types import Record

# A retrieval that no prompt came of for so long is not waiting for one any more.
WAITS_S = 60.0

__all__ = ["RecordRing"]


@dataclass(slots=True)
class _Entry:
    record: Record
    put_s: float
    is_taken: bool = False

    @property
    def question(self) -> str:
        return self.record.question.strip()

    @property
    def texts(self) -> list[str]:
        return [t for t in (p.text.strip() for p in self.record.passages) if t]

    def is_shown_in(self, text: str) -> bool:
        """Tell whether a prompt holds all passages of this retrieval, of which it has some."""
        texts = self.texts
        return bool(texts) and all(t in text for t in texts)

    def is_asked_in(self, text: str) -> bool:
        """Tell whether the question stands in a prompt, and not in a passage of it alone."""
        for passage in self.texts:
            text = text.replace(passage, "\0")
        return self.question in text


class RecordRing:
    """The last records of one tenant, bounded. Safe for many threads."""

    def __init__(self, size: int) -> None:
        self._entries: deque[_Entry] = deque(maxlen=size)
        self._lock = threading.Lock()

    def put(self, record: Record) -> None:
        with self._lock:
            self._entries.append(_Entry(record, time.monotonic()))

    def all(self) -> list[Record]:
        """Return the records, oldest first."""
        with self._lock:
            return [entry.record for entry in self._entries]

    def forget(self, records: Sequence[Record]) -> None:
        """Let go of records."""
        gone = {id(record) for record in records}
        with self._lock:
            kept = [e for e in self._entries if id(e.record) not in gone]
            self._entries.clear()
            self._entries.extend(kept)

    def find(self, text: str, question: str = "") -> Record | None:
        """Return the record of a prompt's retrieval, None where there is none.

        Of the records whose passages all occur in `text`, that is the one of the `question`, if
        that is told, else the one whose question `text` ends with or has last. Where a chain drops
        passages behind the retriever, the first passage has to occur, and the question.

        A chain may put its question in other words. Then it is the latest record; if requests of
        several questions wait for their prompts, it is nobody's own, and its question is "".
        """
        with self._lock:
            entries = list(self._entries)[::-1]
        asked = _asking(entries, text, question)
        is_told = bool(question)  # and then it need not stand there
        shown_too = (e for e in asked if e.is_shown_in(text))
        chosen = next((e for e in shown_too if is_told or e.is_asked_in(text)), None)
        if chosen is not None:
            return self._taken(chosen)
        shown = [e for e in entries if e.is_shown_in(text)]
        if not shown:
            cut = next((e for e in asked if e.texts and e.texts[0] in text), None)
            return self._taken(cut) if cut is not None else None
        since_s = time.monotonic() - WAITS_S
        waiting = [e for e in shown if not e.is_taken and e.put_s >= since_s] or shown
        if len({e.question for e in waiting}) == 1:
            return self._taken(waiting[0])
        for entry in waiting:
            self._taken(entry)
        return replace(waiting[0].record, question="")

    @staticmethod
    def _taken(entry: _Entry) -> Record:
        entry.is_taken = True
        return entry.record


def _asking(entries: Iterable[_Entry], text: str, question: str) -> list[_Entry]:
    """Return the entries of the question that a prompt asks, best first, the latest before others.

    One may stand within another, or in an earlier turn.
    """
    if question:
        return [e for e in entries if e.question == question.strip()]
    found = [(text.rfind(e.question), e) for e in entries if e.question]
    held = [(at + len(e.question), len(e.question), e) for at, e in found if at >= 0]
    return [e for *_, e in sorted(held, key=lambda one: one[:2], reverse=True)]
