"""The passages of a history: by id, and every further text that an id ever had.

Tables in the history's file, whose connection and lock are the history's own.
"""

import json
import sqlite3
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any, TypeVar

from centroidkv.errors import CacheCorrupt
from centroidkv.sqlite_checks import Checked
from centroidkv.types import Passage
from centroidkv.vault import Vault

T = TypeVar("T")

__all__ = ["SCHEMA", "TABLES", "KnownPassages", "readable"]

# `further_texts` is there for forgetting: KV of each text is found by the id that all of them had.
SCHEMA = """
CREATE TABLE IF NOT EXISTS passages (
    namespace TEXT NOT NULL, id TEXT NOT NULL, text TEXT NOT NULL, metadata TEXT NOT NULL,
    PRIMARY KEY (namespace, id)
) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS further_texts (
    namespace TEXT NOT NULL, id TEXT NOT NULL, text TEXT NOT NULL,
    PRIMARY KEY (namespace, id, text)
) WITHOUT ROWID;
"""
_ID, _TEXT, _METADATA = "passages.id", "passages.text", "passages.metadata"
_PASSAGES = Checked(
    "passages", key=("namespace", "id"), columns=("namespace", "id", "text", "metadata")
)
_FURTHER = Checked(
    "further_texts", key=("namespace", "id", "text"), columns=("namespace", "id", "text")
)
TABLES = (_PASSAGES, _FURTHER)
_ADD_FURTHER = """
INSERT OR IGNORE INTO further_texts SELECT namespace, id, ? FROM passages
WHERE namespace = ? AND id = ? AND text != ?
"""


class KnownPassages:
    """The passages of one plan namespace. Every method runs within the history's lock."""

    def __init__(self, db: sqlite3.Connection, namespace: str, vault: Vault) -> None:
        self._db = db
        self._namespace = namespace
        self._vault = vault

    def add(self, passages: Iterable[Passage]) -> None:
        """Remember passages; of one whose id is known with another text, the text too."""
        put = self._vault.put_text
        for passage in passages:
            own, text = self._id(passage.id), put(passage.text, _TEXT)
            metadata = put(json.dumps(dict(passage.metadata), default=str), _METADATA)
            row = (self._namespace, own)
            _PASSAGES.drop_if_unsound(self._db, "namespace = ? AND id = ?", row)
            values = (*row, text, metadata)
            self._db.execute("INSERT OR IGNORE INTO passages VALUES (?, ?, ?, ?)", values)
            self._db.execute(_ADD_FURTHER, (text, *row, text))

    def named(self, ids: Sequence[str]) -> dict[str, Passage]:
        """Return the known ones among passages."""
        query = "SELECT text, metadata FROM sound_passages WHERE namespace = ? AND id = ?"
        found: dict[str, Passage] = {}
        for passage in ids:
            row = self._db.execute(query, (self._namespace, self._id(passage))).fetchone()
            rows = [(self._id(passage), *row)] if row is not None else []
            found |= {p.id: p for p in readable(self._passage, rows)}
        return found

    def all(self) -> list[Passage]:
        """Return every passage, each with the first text of its id."""
        query = "SELECT id, text, metadata FROM sound_passages WHERE namespace = ?"
        rows = self._db.execute(query, (self._namespace,)).fetchall()
        return list(readable(self._passage, rows))

    def further(self) -> list[Passage]:
        """Return the further texts that ids had, each as a passage of that id."""
        query = "SELECT id, text, NULL FROM sound_further_texts WHERE namespace = ?"
        rows = self._db.execute(query, (self._namespace,)).fetchall()
        return list(readable(self._passage, rows))

    def drop(self, ids: Iterable[str]) -> None:
        """Remove passages with all their texts."""
        gone = [(self._namespace, self._id(passage)) for passage in ids]
        for table in TABLES:
            query = f"DELETE FROM {table.table} WHERE namespace = ? AND id = ?"
            self._db.executemany(query, gone)

    def _id(self, passage: str) -> str | bytes:
        return self._vault.put_text(passage, _ID)

    def _passage(self, row: Sequence[Any]) -> Passage:
        own, text, metadata = row
        take = self._vault.take_text
        known = {} if metadata is None else json.loads(take(metadata, _METADATA))
        return Passage(take(own, _ID), take(text, _TEXT), known)


def readable(read: Callable[[Sequence[Any]], T], rows: Iterable[Sequence[Any]]) -> Iterator[T]:
    """Yield what rows hold; one that cannot be read counts as not there."""
    for row in rows:
        try:
            yield read(row)
        except (CacheCorrupt, ValueError):
            continue
