"""Answers kept by exact prompt, and by question within the same surroundings.

A SQLite file in the store folder, readable by the owner only. Knows no framework: an answer is a
text that its keeper understands. Texts and embeddings go through a vault, which may seal them.
"""

import logging
import sqlite3
import threading
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TypeVar

import numpy as np

from centroidkv.error_kinds import kind_of
from centroidkv.errors import CacheCorrupt, ConfigError, StoreError
from centroidkv.files import set_aside
from centroidkv.sqlite_checks import Checked, is_damage
from centroidkv.sqlite_files import open_to_write
from centroidkv.sqlite_scrubbing import ages_of, erasing, oldest_of, scrub
from centroidkv.types import FloatArray
from centroidkv.vault import IN_THE_CLEAR, Vault

_log = logging.getLogger("centroidkv")

T = TypeVar("T")

# The number is an answer's age: the oldest is the first to go.
_SCHEMA = """
CREATE TABLE IF NOT EXISTS answers (
    number INTEGER PRIMARY KEY, namespace TEXT NOT NULL, id TEXT NOT NULL, scope TEXT NOT NULL,
    question TEXT NOT NULL, embedding BLOB NOT NULL, answer TEXT NOT NULL, UNIQUE (namespace, id)
);
CREATE INDEX IF NOT EXISTS answers_of_scope ON answers (namespace, scope);
""" + ages_of("answers")
_ANSWERS = Checked(
    "answers",
    key=("number",),
    columns=("number", "namespace", "id", "scope", "question", "embedding", "answer"),
)
_QUESTION, _EMBEDDING, _ANSWER = "answers.question", "answers.embedding", "answers.answer"
_PUT = """
INSERT INTO answers VALUES (NULL, ?, ?, ?, ?, ?, ?)
ON CONFLICT (namespace, id) DO UPDATE SET scope = excluded.scope, question = excluded.question,
    embedding = excluded.embedding, answer = excluded.answer
"""
_DROP_OLDEST = """
DELETE FROM answers WHERE number IN (
    SELECT number FROM answers WHERE namespace = ? ORDER BY number LIMIT MAX(0,
        (SELECT COUNT(*) FROM answers WHERE namespace = ?) - ?)
)
"""

# Of an answer that is a JSON list: the texts of its prompt, in the first entry, so that it is found
# when any of them is forgotten. One without them cannot be told from what is to be forgotten.
ASKED = "asked"

__all__ = ["ASKED", "Answer", "AnswerStore"]


@dataclass(frozen=True, slots=True)
class Answer:
    """A kept answer. `distance` is that of its question to the one asked; 0 for the same prompt.

    `vector` is the question's, [dim], of one that was found.
    """

    id: str
    question: str
    answer: str
    distance: float
    vector: FloatArray | None = field(default=None, repr=False, compare=False)


class AnswerStore:
    """Kept answers of one namespace. Safe for many threads and processes.

    Raises:
        StoreError: From every method: the file cannot be read or written. A damaged one is set
            aside instead, and a new one begun.
    """

    def __init__(self, folder: Path, namespace: str, *, vault: Vault = IN_THE_CLEAR) -> None:
        self.namespace = namespace
        self._vault = vault
        self._path = folder / "answers.sqlite"
        self._quarantine = folder / "quarantine"
        self._lock = threading.RLock()
        self._db: sqlite3.Connection | None = None
        self._is_closed = False
        self._run(lambda db: db.execute("SELECT 1 FROM answers LIMIT 1").fetchone())

    def close(self) -> None:
        with self._lock:
            self._is_closed = True
            self._disconnect()

    def get(self, answer_id: str) -> Answer | None:
        """Return the answer kept under an id."""
        columns = "question, answer, embedding"
        query = f"SELECT {columns} FROM sound_answers WHERE namespace = ? AND id = ?"
        row = self._run(lambda db: db.execute(query, (self.namespace, answer_id)).fetchone())
        found = self._answer(answer_id, *row[:2]) if row else None
        return replace(found, vector=self._vector(row[2])) if found else None

    # What cannot be read counts as not there.

    def _answer(self, answer_id: str, question: object, answer: object) -> Answer | None:
        take = self._vault.take_text
        try:
            return Answer(answer_id, take(question, _QUESTION), take(answer, _ANSWER), 0.0)
        except (CacheCorrupt, ValueError):
            return None

    def _vector(self, embedding: object) -> FloatArray | None:
        try:
            return np.frombuffer(self._vault.take(embedding, _EMBEDDING), np.float32)
        except (CacheCorrupt, ValueError):
            return None

    def nearest(self, scope: str, vector: FloatArray) -> Answer | None:
        """Return the answer whose question is nearest to `vector`, [dim], within a scope."""
        columns = "id, question, answer, embedding"
        query = f"SELECT {columns} FROM sound_answers WHERE namespace = ? AND scope = ?"
        rows = self._run(lambda db: db.execute(query, (self.namespace, scope)).fetchall())
        held = [(row, own) for row in rows if (own := self._vector(row[3])) is not None]
        if not held:
            return None
        known = np.stack([own for _, own in held])
        distances = np.linalg.norm(known - vector, axis=1)
        best = int(distances.argmin())
        found = self._answer(*held[best][0][:3])
        if found is None:
            return None
        return replace(found, distance=float(distances[best]), vector=known[best])

    def put(
        self, answer: Answer, *, scope: str, vector: FloatArray, maxsize: int | None = None
    ) -> None:
        """Keep an answer; one under the same id is replaced and keeps its age.

        Where the namespace holds `maxsize` answers already, the oldest goes first, even if the
        new one only replaces another.
        """
        row = (
            self.namespace,
            answer.id,
            scope,
            self._vault.put_text(answer.question, _QUESTION),
            self._vault.put(vector.astype(np.float32).tobytes(), _EMBEDDING),
            self._vault.put_text(answer.answer, _ANSWER),
        )

        def work(db: sqlite3.Connection) -> None:
            with db:
                db.execute("BEGIN IMMEDIATE")
                if maxsize is not None:
                    db.execute(_DROP_OLDEST, (self.namespace, self.namespace, maxsize - 1))
                db.execute(_PUT, row)

        self._run(work)

    def delete(self, *, answer_id: str | None = None, question: str | None = None) -> int:
        """Forget answers by id or by question, or all of the namespace; return how many."""
        where = "namespace = ?"
        values: list[str | bytes] = [self.namespace]
        if answer_id is not None:
            where, values = f"{where} AND id = ?", [*values, answer_id]
        if question is not None:
            where, values = (
                f"{where} AND question = ?",
                [*values, self._vault.put_text(question, _QUESTION)],
            )
        query = f"DELETE FROM answers WHERE {where}"

        def work(db: sqlite3.Connection) -> int:
            erasing(db)
            return db.execute(query, values).rowcount

        return self._run(work)

    def scoped(self, scope: str) -> list[tuple[Answer, FloatArray]]:
        """Return the answers of a scope with their questions' vectors."""
        query = (
            "SELECT id, question, answer, embedding FROM sound_answers"
            " WHERE namespace = ? AND scope = ? ORDER BY number"
        )
        rows = self._run(lambda db: db.execute(query, (self.namespace, scope)).fetchall())
        held = [(self._answer(i, q, a), self._vector(e)) for i, q, a, e in rows]
        return [(one, own) for one, own in held if one is not None and own is not None]

    def delete_scope(self, scope: str) -> int:
        """Forget the answers of a scope, in every namespace; return how many."""
        query = "DELETE FROM answers WHERE scope = ?"
        return self._run(lambda db: db.execute(query, (scope,))).rowcount

    def faults(self) -> list[str]:
        """Say how many rows are not what was written, in every namespace; these are not served."""
        unsound = self._run(_ANSWERS.num_unsound)
        return [f"answers: {unsound} damaged rows"] if unsound else []

    def drop_unsound(self) -> None:
        """Remove damaged rows."""
        self._run(_ANSWERS.drop_unsound)

    # forgetting

    def all(self, before_s: float | None = None) -> list[Answer]:
        """Return the answers, oldest first; of those stored before a time, if one is given."""
        query = (
            "SELECT id, question, answer FROM sound_answers JOIN answers_ages USING (number)"
            " WHERE namespace = ? AND stored_s < ? ORDER BY number"
        )
        limit = float("inf") if before_s is None else before_s
        rows = self._run(lambda db: db.execute(query, (self.namespace, limit)).fetchall())
        return [one for row in rows if (one := self._answer(*row)) is not None]

    def oldest(self) -> dict[str, float]:
        """Return by namespace when its oldest answer was stored."""
        return self._run(lambda db: oldest_of(db, "answers"))

    def settle_clock(self, now_s: float) -> None:
        """Take what seems to come from after `now_s` for new: the clock was set back."""
        query = "UPDATE answers_ages SET stored_s = ? WHERE stored_s > ?"
        self._run(lambda db: db.execute(query, (int(now_s), now_s)))

    def scrub(self) -> bool:
        """Rewrite the file without what was deleted; tell whether that could be done."""
        return self._run(scrub)

    # the file

    def _run(self, work: Callable[[sqlite3.Connection], T]) -> T:
        with self._lock:
            if self._is_closed:
                raise ConfigError("the engine is closed; open it again with Engine.open(...)")
            try:
                return self._work(work)
            except (sqlite3.Error, OSError) as error:
                raise StoreError(
                    f"answers cannot be kept in {self._path}: {kind_of(error)}"
                ) from error

    def _work(self, work: Callable[[sqlite3.Connection], T]) -> T:
        """Work on the file, or if it is damaged, on a new one."""
        try:
            return work(self._connected())
        except sqlite3.DatabaseError as error:
            if not is_damage(error):
                raise
            _log.warning("%s is damaged (%s); a new one is begun", self._path, kind_of(error))
        self._disconnect()
        set_aside(self._path, self._quarantine)
        return work(self._connected())

    def _connected(self) -> sqlite3.Connection:
        if self._db is None:
            self._db = open_to_write(
                self._path, _SCHEMA, checked=[_ANSWERS], digest_key=self._vault.digest_key
            )
        return self._db

    def _disconnect(self) -> None:
        if self._db is not None:
            self._db.close()
            self._db = None
