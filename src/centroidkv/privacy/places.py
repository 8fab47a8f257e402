"""Places that hold texts besides KV and plans: history, answers, drafts, arenas, records.

Each is one class over what its own part offers; see `Place` for the contract.
"""

import contextlib
import json
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager

from centroidkv.kv.blocks import namespace_id
from centroidkv.kv.holdings import Holdings
from centroidkv.models.detokenizing import forget_arenas, kept_arenas, text_of
from centroidkv.privacy.report import Held
from centroidkv.privacy.wanted import Wanted
from centroidkv.protocols import CausalModel
from centroidkv.routing.history import Asked, History
from centroidkv.routing.records import RecordRing
from centroidkv.serving.answers import ASKED, Answer, AnswerStore
from centroidkv.serving.drafts import DraftStore
from centroidkv.store import Store
from centroidkv.types import Passage, Record

__all__ = [
    "AnswersPlace",
    "ArenasPlace",
    "DraftsPlace",
    "HistoryPlace",
    "RecordsPlace",
]

_IN_USE = "{} is in use by another process and keeps a rest"


class RecordsPlace:
    """The ring of retrievals in memory."""

    name = "records"

    def __init__(self, records: RecordRing) -> None:
        self._records = records

    def find(self, wanted: Wanted) -> list[Held]:
        found = self._found(wanted)
        asked = [Held(self.name, str(r.time_s), r.question, {"time_s": r.time_s}) for r in found]
        if wanted.passage is None:
            return asked
        shown = (p for r in found for p in r.passages if wanted.is_passage(p))
        texts = dict.fromkeys((p.id, p.text) for p in shown)
        return asked + [Held(self.name, own, text) for own, text in texts]

    def _found(self, wanted: Wanted) -> list[Record]:
        def is_wanted(record: Record) -> bool:
            if wanted.before_s is not None:
                return record.time_s < wanted.before_s
            is_asked = wanted.is_question(record.question)
            return is_asked or any(map(wanted.is_passage, record.passages))

        return [record for record in self._records.all() if is_wanted(record)]

    def forget(self, wanted: Wanted) -> int:
        found = self._found(wanted)
        self._records.forget(found)
        return len(found)

    def scrub(self) -> str | None:
        return None


class ArenasPlace:
    """KV that the model keeps for the next request. All of it goes: it is made again by a copy."""

    name = "arenas"

    def __init__(self, model: CausalModel, residence: str) -> None:
        self._model = model
        self._residence = residence

    def find(self, wanted: Wanted) -> list[Held]:
        held = [(ids, text_of(self._model, ids)) for ids in self._kept()]
        return [
            Held(self.name, str(number), text or "", {"num_tokens": len(ids)})
            for number, (ids, text) in enumerate(held)
            if text is None or wanted.before_s is not None or wanted.is_in(text)
        ]

    def _kept(self) -> list[tuple[int, ...]]:
        return kept_arenas(self._model, self._residence)

    def forget(self, wanted: Wanted) -> int:  # noqa: ARG002 - whatever it is
        return forget_arenas(self._model, self._residence)

    def scrub(self) -> str | None:
        return None


class HistoryPlace:
    """Questions seen, and the passages found for them."""

    name = "history"

    def __init__(self, opened: Callable[[], AbstractContextManager[History]]) -> None:
        self._opened = opened

    def find(self, wanted: Wanted) -> list[Held]:
        with self._opened() as history:
            asked = [
                Held(
                    self.name,
                    a.seen.question,
                    a.seen.question,
                    {"times": a.times, "last_seen_s": a.last_seen_s, "is_built": a.is_built},
                )
                for a in _asked(history, wanted)
            ]
            return asked + [Held(self.name, p.id, p.text) for p in _passages(history, wanted)]

    def forget(self, wanted: Wanted) -> int:
        with self._opened() as history:
            asked, passages = _asked(history, wanted), _passages(history, wanted)
            if wanted.before_s is None:
                history.drop_unsound()  # nothing tells what they were
            if wanted.everything:
                history.clear()
            else:
                history.forget([a.seen.question for a in asked])
                if passages:
                    history.forget_passages(passages)
            return len(asked) + len(passages)

    def scrub(self) -> str | None:
        with self._opened() as history:
            return None if history.scrub() else _IN_USE.format("history.sqlite")


def _asked(history: History, wanted: Wanted) -> list[Asked]:
    if wanted.before_s is not None:
        return history.older(wanted.before_s)
    return [a for a in history.asked() if wanted.is_question(a.seen.question)]


def _passages(history: History, wanted: Wanted) -> list[Passage]:
    return [p for p in history.passage_texts() if wanted.is_passage(p)]


class AnswersPlace:
    """Answers of answer caches, and what representatives left, of all models of a tenant.

    Answers that do not tell what they were asked go with any text, as drafts do.
    """

    name = "answers"

    def __init__(self, store: Store, holdings: Holdings, model: CausalModel) -> None:
        self._store = store
        self._holdings = holdings
        self._model = model

    def find(self, wanted: Wanted) -> list[Held]:
        return [
            Held(self.name, answer.id, answer.question, {"answer": answer.answer})
            for store in self._stores()
            for answer in self._found(store, wanted)
        ]

    def _found(self, store: AnswerStore, wanted: Wanted) -> list[Answer]:
        if wanted.before_s is not None:
            return store.all(wanted.before_s)
        return [answer for answer in store.all() if self._is_wanted(answer, wanted)]

    def _gone(self, store: AnswerStore, wanted: Wanted) -> list[Answer]:
        if wanted.before_s is not None:
            return self._found(store, wanted)
        kept = store.all()
        return [a for a in kept if _is_untold(a.answer) or self._is_wanted(a, wanted)]

    def _is_wanted(self, answer: Answer, wanted: Wanted) -> bool:
        if any(map(wanted.is_in, (answer.question, answer.answer, *_strings(answer.answer)))):
            return True
        prompt = _prompt_ids(answer.answer)
        text = text_of(self._model, prompt) if prompt else None
        return wanted.is_in(text) if text is not None else False

    def forget(self, wanted: Wanted) -> int:
        forgotten = 0
        for store in self._stores():
            if wanted.before_s is None:
                store.drop_unsound()  # nothing tells what they were
            for answer in self._gone(store, wanted):
                forgotten += store.delete(answer_id=answer.id)
        return forgotten

    def scrub(self) -> str | None:
        done = [store.scrub() for store in self._stores()]
        return None if all(done) else _IN_USE.format("answers.sqlite")

    def _stores(self) -> Iterator[AnswerStore]:
        if not (self._store.path / "answers.sqlite").exists():
            return
        for namespace in self._holdings.namespaces():
            for own in (namespace, namespace_id("representatives", namespace)):
                store = self._store.open_answers(own)
                try:
                    yield store
                finally:
                    store.close()


def _strings(text: str) -> list[str]:
    """Return the texts within JSON, as they are without its escapes."""
    try:
        waiting, found = [json.loads(text)], []
    except ValueError:
        return []
    while waiting:
        value = waiting.pop()
        if isinstance(value, str):
            found.append(value)
        elif isinstance(value, dict):
            waiting += value.values()
        elif isinstance(value, list):
            waiting += value
    return found


def _is_untold(text: str) -> bool:
    """Tell whether an answer cache kept an answer without the texts that it was asked."""
    try:
        rows = json.loads(text)
    except ValueError:
        return False
    if not isinstance(rows, list):
        return False
    first = rows[0] if rows else {}
    return isinstance(first, dict) and ASKED not in first


def _prompt_ids(text: str) -> list[int]:
    try:
        row = json.loads(text)
    except ValueError:
        return []
    return row.get("prompt_ids", []) if isinstance(row, dict) else []


class DraftsPlace:
    """Answers to guess from. They name no question, so all of a tenant's go with any text."""

    name = "drafts"

    def __init__(self, store: Store, holdings: Holdings, model: CausalModel) -> None:
        self._store = store
        self._holdings = holdings
        self._model = model

    def find(self, wanted: Wanted) -> list[Held]:
        with self._opened() as drafts:
            held = drafts.held(self._holdings.namespaces(), wanted.before_s) if drafts else []
        texts = [(kept, text_of(self._model, kept.answer)) for kept in held]
        return [
            Held(self.name, str(kept.number), text or "", {"stored_s": kept.stored_s})
            for kept, text in texts
            if wanted.before_s is not None or text is None or wanted.is_in(text)
        ]

    def forget(self, wanted: Wanted) -> int:
        with self._opened() as drafts:
            if drafts is None:
                return 0
            held = drafts.held(self._holdings.namespaces(), wanted.before_s)
            drafts.forget(held)
            return len(held)

    def scrub(self) -> str | None:
        with self._opened() as drafts:
            is_done = drafts is None or drafts.scrub()
        return None if is_done else _IN_USE.format("drafts.sqlite")

    @contextlib.contextmanager
    def _opened(self) -> Iterator[DraftStore | None]:
        if not (self._store.path / "drafts.sqlite").exists():
            yield None
            return
        with contextlib.closing(self._store.open_drafts("")) as drafts:
            yield drafts
