"""Earlier answers as drafts: by the very same prompt, and by the cluster its question belongs to.

A SQLite file in the store folder; holds token ids in clear, readable by the owner only. What it
gives is verified by the model before it counts, so a wrong or foreign row costs time at most.
"""

import hashlib
import logging
import sqlite3
import threading
from collections.abc import Sequence
from pathlib import Path

from centroidkv.kv.blocks import pack, unpack
from centroidkv.sqlite_files import open_or_begin
from centroidkv.types import Drafts

_log = logging.getLogger("centroidkv")

ANSWERS_PER_CLUSTER = 8
MOST_ANSWERS = 20_000

_SCHEMA = """
CREATE TABLE IF NOT EXISTS drafts (
    number INTEGER PRIMARY KEY, namespace TEXT NOT NULL, prompt BLOB NOT NULL,
    cluster TEXT NOT NULL, answer BLOB NOT NULL, UNIQUE (namespace, prompt)
);
CREATE INDEX IF NOT EXISTS of_cluster ON drafts (namespace, cluster, number);
"""

__all__ = ["DraftStore"]


class DraftStore:
    """Answers of one KV namespace, the newest first to be guessed from. Safe for many threads."""

    def __init__(self, path: Path, namespace: str, *, quarantine: Path) -> None:
        self._namespace = namespace
        self._lock = threading.Lock()
        self._warned = False
        self._db = open_or_begin(path, _SCHEMA, quarantine=quarantine)

    def find(self, prompt: Sequence[int], cluster: str) -> Drafts:
        """Return what an answer may be guessed from: at the least, the prompt."""
        key = _key(prompt)
        try:
            with self._lock:
                same = self._db.execute(
                    "SELECT answer FROM drafts WHERE namespace = ? AND prompt = ?",
                    (self._namespace, key),
                ).fetchone()
                rows = []
                if cluster:
                    rows = self._db.execute(
                        "SELECT answer FROM drafts WHERE namespace = ? AND cluster = ?"
                        " AND prompt != ? ORDER BY number DESC LIMIT ?",
                        (self._namespace, cluster, key, ANSWERS_PER_CLUSTER),
                    ).fetchall()
        except sqlite3.Error as error:
            self._failed(error)
            return Drafts(tuple(prompt))
        answers = tuple(unpack(answer) for (answer,) in reversed(rows))
        return Drafts(tuple(prompt), unpack(same[0]) if same else (), answers)

    def keep(self, prompt: Sequence[int], cluster: str, answer: Sequence[int]) -> None:
        """Keep an answer; an older one to the same prompt is replaced, and the oldest go."""
        row = (self._namespace, _key(prompt), cluster, pack(answer))
        try:
            with self._lock:
                self._db.execute("INSERT OR REPLACE INTO drafts VALUES (NULL, ?, ?, ?, ?)", row)
                self._db.execute(
                    "DELETE FROM drafts WHERE number <= (SELECT MAX(number) FROM drafts) - ?",
                    (MOST_ANSWERS,),
                )
        except sqlite3.Error as error:
            self._failed(error)

    def close(self) -> None:
        with self._lock:
            self._db.close()

    def _failed(self, error: sqlite3.Error) -> None:
        if not self._warned:
            self._warned = True
            _log.warning("answers are decoded without drafts: %s", error)


def _key(prompt: Sequence[int]) -> bytes:
    return hashlib.sha256(pack(prompt)).digest()
