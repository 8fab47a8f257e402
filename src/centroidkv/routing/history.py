"""Questions seen and what was retrieved for them, so that clusters can grow from misses.

A SQLite file next to the plan. Holds text in clear, readable by the owner only.
"""

import json
import logging
import sqlite3
import threading
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from centroidkv.files import set_aside
from centroidkv.types import FloatArray, Passage

_log = logging.getLogger("centroidkv")

__all__ = ["History", "Seen", "open_history"]

_SCHEMA = """
CREATE TABLE IF NOT EXISTS seen (
    number INTEGER PRIMARY KEY, namespace TEXT NOT NULL, question TEXT NOT NULL,
    embedding BLOB NOT NULL, passages TEXT NOT NULL, is_placed INTEGER NOT NULL,
    domain TEXT NOT NULL DEFAULT '',
    UNIQUE (namespace, question)
);
CREATE INDEX IF NOT EXISTS waiting ON seen (namespace, is_placed);
CREATE TABLE IF NOT EXISTS passages (
    namespace TEXT NOT NULL, id TEXT NOT NULL, text TEXT NOT NULL, metadata TEXT NOT NULL,
    PRIMARY KEY (namespace, id)
) WITHOUT ROWID;
"""
_INSERT = (
    "INSERT OR IGNORE INTO seen (namespace, question, embedding, passages, is_placed, domain)"
    " VALUES (?, ?, ?, ?, ?, ?)"
)


@dataclass(frozen=True, slots=True)
class Seen:
    """A question, its embedding [dim], and the ids of what was retrieved for it, best first.

    `domain` is that which was given with it, "" for none.
    """

    question: str
    embedding: FloatArray
    passages: tuple[str, ...]
    domain: str = ""


def open_history(path: Path, namespace: str, *, quarantine: Path) -> "History":
    """Open a history; a damaged file is set aside and a new one begun."""
    try:
        return History(path, namespace)
    except sqlite3.OperationalError:
        raise
    except sqlite3.DatabaseError as error:
        _log.warning("%s is damaged (%s); a new one is begun", path, error)
        set_aside(path, quarantine)
        return History(path, namespace)


class History:
    """Seen questions of one plan namespace."""

    def __init__(self, path: Path, namespace: str) -> None:
        self.namespace = namespace
        self._lock = threading.RLock()
        self._db = sqlite3.connect(path, check_same_thread=False, timeout=10)
        self._db.isolation_level = None
        self._db.execute("PRAGMA journal_mode = WAL")
        self._db.execute("PRAGMA synchronous = NORMAL")
        self._db.executescript(_SCHEMA)
        self._add_domains()
        path.chmod(0o600)

    def _add_domains(self) -> None:
        """Add the column that files of earlier versions lack."""
        self._db.execute("BEGIN IMMEDIATE")
        columns = {row[1] for row in self._db.execute("PRAGMA table_info(seen)")}
        if "domain" not in columns:
            self._db.execute("ALTER TABLE seen ADD COLUMN domain TEXT NOT NULL DEFAULT ''")
        self._db.execute("COMMIT")

    def close(self) -> None:
        with self._lock:
            self._db.close()

    def add(self, seen: Seen, passages: Sequence[Passage], *, is_placed: bool) -> None:
        """Remember a question; one that is known already changes nothing."""
        texts = [
            (self.namespace, p.id, p.text, json.dumps(dict(p.metadata), default=str))
            for p in passages
        ]
        row = (
            self.namespace,
            seen.question,
            seen.embedding.astype(np.float32).tobytes(),
            json.dumps(seen.passages),
            is_placed,
            seen.domain,
        )
        with self._lock:
            self._db.execute("BEGIN IMMEDIATE")
            try:
                self._db.executemany("INSERT OR IGNORE INTO passages VALUES (?, ?, ?, ?)", texts)
                self._db.execute(_INSERT, row)
            except BaseException:
                self._db.execute("ROLLBACK")
                raise
            self._db.execute("COMMIT")

    def waiting(self) -> list[Seen]:
        """Return the questions that no cluster has admitted."""
        return self._select("is_placed = 0")

    def all(self) -> list[Seen]:
        """Return every question seen, oldest first."""
        return self._select("1")

    def _select(self, where: str) -> list[Seen]:
        query = (
            "SELECT question, embedding, passages, domain FROM seen"
            f" WHERE namespace = ? AND {where} ORDER BY number"
        )
        with self._lock:
            rows = self._db.execute(query, (self.namespace,)).fetchall()
        return [
            Seen(q, np.frombuffer(e, np.float32), tuple(json.loads(p)), d) for q, e, p, d in rows
        ]

    def place(self, questions: Sequence[str]) -> None:
        """Mark questions as belonging to a cluster."""
        with self._lock:
            self._db.executemany(
                "UPDATE seen SET is_placed = 1 WHERE namespace = ? AND question = ?",
                [(self.namespace, q) for q in questions],
            )

    def count(self) -> int:
        with self._lock:
            query = "SELECT COUNT(*) FROM seen WHERE namespace = ?"
            return int(self._db.execute(query, (self.namespace,)).fetchone()[0])

    def passages(self, ids: Sequence[str]) -> dict[str, Passage]:
        """Return the known ones among passages."""
        found: dict[str, Passage] = {}
        with self._lock:
            for passage in ids:
                row = self._db.execute(
                    "SELECT text, metadata FROM passages WHERE namespace = ? AND id = ?",
                    (self.namespace, passage),
                ).fetchone()
                if row is not None:
                    found[passage] = Passage(passage, row[0], json.loads(row[1]))
        return found
