"""Answers kept by exact prompt, and by question within the same surroundings.

A SQLite file in the store folder. Knows no framework: an answer is a text that its keeper
understands. Holds text in clear, readable by the owner only.
"""

import logging
import sqlite3
import threading
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from centroidkv.files import set_aside
from centroidkv.types import FloatArray

_log = logging.getLogger("centroidkv")

_SCHEMA = """
CREATE TABLE IF NOT EXISTS answers (
    id TEXT NOT NULL, namespace TEXT NOT NULL, scope TEXT NOT NULL, question TEXT NOT NULL,
    embedding BLOB NOT NULL, answer TEXT NOT NULL, PRIMARY KEY (namespace, id)
) WITHOUT ROWID;
CREATE INDEX IF NOT EXISTS answers_of_scope ON answers (namespace, scope);
"""

__all__ = ["Answer", "AnswerStore"]


@dataclass(frozen=True, slots=True)
class Answer:
    """A kept answer. `distance` is that of its question to the one asked; 0 for the same prompt."""

    id: str
    question: str
    answer: str
    distance: float


class AnswerStore:
    """Kept answers of one namespace. Safe for many threads."""

    def __init__(self, folder: Path, namespace: str) -> None:
        self.namespace = namespace
        self._lock = threading.RLock()
        path = folder / "answers.sqlite"
        try:
            self._db = self._open(path)
        except sqlite3.OperationalError:
            raise
        except sqlite3.DatabaseError as error:
            _log.warning("%s is damaged (%s); a new one is begun", path, error)
            set_aside(path, folder / "quarantine")
            self._db = self._open(path)

    @staticmethod
    def _open(path: Path) -> sqlite3.Connection:
        db = sqlite3.connect(path, check_same_thread=False, timeout=10)
        db.isolation_level = None
        db.execute("PRAGMA journal_mode = WAL")
        db.execute("PRAGMA synchronous = NORMAL")
        db.executescript(_SCHEMA)
        path.chmod(0o600)
        return db

    def close(self) -> None:
        with self._lock:
            self._db.close()

    def get(self, answer_id: str) -> Answer | None:
        """Return the answer kept under an id."""
        query = "SELECT question, answer FROM answers WHERE namespace = ? AND id = ?"
        with self._lock:
            row = self._db.execute(query, (self.namespace, answer_id)).fetchone()
        return Answer(answer_id, row[0], row[1], 0.0) if row else None

    def nearest(self, scope: str, vector: FloatArray) -> Answer | None:
        """Return the answer whose question is nearest to `vector`, [dim], within a scope."""
        query = (
            "SELECT id, question, answer, embedding FROM answers WHERE namespace = ? AND scope = ?"
        )
        with self._lock:
            rows = self._db.execute(query, (self.namespace, scope)).fetchall()
        if not rows:
            return None
        known = np.stack([np.frombuffer(r[3], np.float32) for r in rows])
        distances = np.linalg.norm(known - vector, axis=1)
        best = int(distances.argmin())
        return Answer(rows[best][0], rows[best][1], rows[best][2], float(distances[best]))

    def put(self, answer: Answer, *, scope: str, vector: FloatArray) -> None:
        """Keep an answer; one under the same id is replaced."""
        raw = vector.astype(np.float32).tobytes()
        row = (answer.id, self.namespace, scope, answer.question, raw, answer.answer)
        with self._lock:
            self._db.execute("INSERT OR REPLACE INTO answers VALUES (?, ?, ?, ?, ?, ?)", row)

    def delete(self, *, answer_id: str | None = None, question: str | None = None) -> int:
        """Forget answers by id or by question, or all of the namespace; return how many."""
        where, values = "namespace = ?", [self.namespace]
        if answer_id is not None:
            where, values = f"{where} AND id = ?", [*values, answer_id]
        if question is not None:
            where, values = f"{where} AND question = ?", [*values, question]
        with self._lock:
            return self._db.execute(f"DELETE FROM answers WHERE {where}", values).rowcount
