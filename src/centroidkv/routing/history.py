"""Questions seen and what was retrieved for them: clusters grow from them and plans are refitted.

A SQLite file that only its owner reads. Texts and embeddings go through a vault, which may seal.
"""

import json
import logging
import sqlite3
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from centroidkv.error_kinds import kind_of
from centroidkv.files import set_aside
from centroidkv.routing.known_passages import SCHEMA, TABLES, KnownPassages, readable
from centroidkv.sqlite_checks import Checked, is_damage
from centroidkv.sqlite_files import open_to_write
from centroidkv.sqlite_scrubbing import erasing, scrub
from centroidkv.sqlite_sharing import SharedFiles
from centroidkv.types import FloatArray, Passage
from centroidkv.vault import IN_THE_CLEAR, Vault

_log = logging.getLogger("centroidkv")

__all__ = ["Asked", "History", "Seen", "open_history"]

_SCHEMA = (
    """
CREATE TABLE IF NOT EXISTS seen (
    number INTEGER PRIMARY KEY, namespace TEXT NOT NULL, question TEXT NOT NULL,
    embedding BLOB NOT NULL, passages TEXT NOT NULL, is_placed INTEGER NOT NULL,
    UNIQUE (namespace, question)
);
CREATE INDEX IF NOT EXISTS waiting ON seen (namespace, is_placed);
"""
    + SCHEMA
)
# Columns that files of an earlier version lack.
_LATER = {
    "times": "INTEGER NOT NULL DEFAULT 1",
    "last_seen_s": "REAL NOT NULL DEFAULT 0",
    "is_built": "INTEGER NOT NULL DEFAULT 0",
    "domain": "TEXT NOT NULL DEFAULT ''",
}
_QUESTION, _EMBEDDING, _FOUND = "seen.question", "seen.embedding", "seen.passages"
_DOMAIN = "seen.domain"
# What a plan is made of again, and so is served.
_SEEN = Checked(
    "seen",
    key=("number",),
    columns=("number", "namespace", "question", "embedding", "passages", "domain"),
)
_TABLES = (_SEEN, *TABLES)
_ROW = "(namespace, question, embedding, passages, is_placed, times, last_seen_s, is_built, domain)"
_ADD = f"""
INSERT INTO seen {_ROW} VALUES (?, ?, ?, ?, ?, 1, ?, 0, ?) ON CONFLICT (namespace, question)
DO UPDATE SET times = times + 1, last_seen_s = excluded.last_seen_s
"""
_BUILT = f"""
INSERT INTO seen {_ROW} VALUES (?, ?, ?, ?, 1, 0, 0, 1, ?) ON CONFLICT (namespace, question)
DO UPDATE SET embedding = excluded.embedding, passages = excluded.passages, is_placed = 1,
    is_built = 1, domain = excluded.domain
"""


@dataclass(frozen=True, slots=True)
class Seen:
    """A question, its embedding [dim], and the ids of what was retrieved for it, best first.

    `domain` is that which was given with it, "" for none; `weight` says how much it counts when
    passages are chosen.
    """

    question: str
    embedding: FloatArray
    passages: tuple[str, ...]
    domain: str = ""
    weight: float = 1.0


@dataclass(frozen=True, slots=True)
class Asked:
    """A question of the history: seen `times` in requests, last at `last_seen_s` (Unix time).

    `is_built` marks those of the last build, which may never have been asked since.
    """

    seen: Seen
    times: int
    last_seen_s: float
    is_built: bool


def open_history(
    path: Path,
    namespace: str,
    *,
    quarantine: Path,
    vault: Vault = IN_THE_CLEAR,
    files: SharedFiles | None = None,
) -> "History":
    """Open a history; a damaged file is set aside and a new one begun."""
    try:
        return History(path, namespace, vault, files)
    except sqlite3.DatabaseError as error:
        if not is_damage(error):
            raise
        _log.warning("%s is damaged (%s); a new one is begun", path, kind_of(error))
        set_aside(path, quarantine)
        return History(path, namespace, vault, files)


class History:
    """Seen questions of one plan namespace, in a file that others of `files` may have open too."""

    def __init__(
        self,
        path: Path,
        namespace: str,
        vault: Vault = IN_THE_CLEAR,
        files: SharedFiles | None = None,
    ) -> None:
        self.namespace = namespace
        self._vault = vault
        self._file = (files or SharedFiles()).open(path, partial(_connected, path, vault))
        self._lock, self._db = self._file.lock, self._file.db
        self._known = KnownPassages(self._db, namespace, vault)

    def close(self) -> None:
        self._file.close()

    @contextmanager
    def _writing(self) -> Iterator[sqlite3.Connection]:
        with self._lock:
            self._db.execute("BEGIN IMMEDIATE")
            try:
                yield self._db
            except BaseException:
                self._db.execute("ROLLBACK")
                raise
            self._db.execute("COMMIT")

    def add(self, seen: Seen, passages: Sequence[Passage], *, is_placed: bool) -> None:
        """Remember a question; of one that is known already, that it came again."""
        with self._writing() as db:
            self._known.add(passages)
            row = (self.namespace, self._question(seen.question))
            _SEEN.drop_if_unsound(db, "namespace = ? AND question = ?", row)
            db.execute(_ADD, (*self._row(seen), is_placed, time.time(), self._domain(seen.domain)))

    def note_passages(self, passages: Sequence[Passage]) -> None:
        """Remember passages that no question is noted with, so that their ids are known."""
        with self._writing():
            self._known.add(passages)

    def add_built(
        self, seen: Sequence[Seen], passages: Mapping[str, Passage], domains: Mapping[str, str]
    ) -> None:
        """Remember the questions of a build; those of an earlier one are let go.

        Questions that came in requests stay.
        """
        with self._writing() as db:
            self._known.add(passages.values())
            db.execute("UPDATE seen SET is_built = 0 WHERE namespace = ?", (self.namespace,))
            named = [domains.get(s.question) or s.domain for s in seen]
            rows = [(*self._row(s), self._domain(d)) for s, d in zip(seen, named, strict=True)]
            db.executemany(_BUILT, rows)
            gone = "namespace = ? AND is_built = 0 AND times = 0"
            db.execute(f"DELETE FROM seen WHERE {gone}", (self.namespace,))

    def _row(self, seen: Seen) -> tuple[str, str | bytes, bytes, str | bytes]:
        vector = self._vault.put(seen.embedding.astype(np.float32).tobytes(), _EMBEDDING)
        found = self._vault.put_text(json.dumps(seen.passages), _FOUND)
        return self.namespace, self._question(seen.question), vector, found

    def _question(self, question: str) -> str | bytes:
        return self._vault.put_text(question, _QUESTION)

    def _domain(self, domain: str) -> str | bytes:
        return self._vault.put_text(domain, _DOMAIN) if domain else ""

    def waiting(self) -> list[Seen]:
        """Return the questions that no cluster has admitted."""
        return [a.seen for a in self._select("is_placed = 0")]

    def all(self) -> list[Seen]:
        """Return every question seen, oldest first."""
        return [a.seen for a in self._select("1")]

    def asked(self, *, since_s: float = 0.0) -> list[Asked]:
        """Return the questions of the last build and of requests since a time, oldest first."""
        return self._select("(is_built OR last_seen_s >= ?)", since_s)

    def _select(self, where: str, *values: object) -> list[Asked]:
        query = (
            "SELECT question, embedding, passages, times, last_seen_s, is_built, domain"
            f" FROM sound_seen WHERE namespace = ? AND {where} ORDER BY number"
        )
        with self._lock:
            rows = self._db.execute(query, (self.namespace, *values)).fetchall()
        return list(readable(self._asked, rows))

    def _asked(self, row: Sequence[Any]) -> Asked:
        question, embedding, found, times, last_seen_s, is_built, domain = row
        vector = np.frombuffer(self._vault.take(embedding, _EMBEDDING), np.float32)
        passages = json.loads(self._vault.take_text(found, _FOUND))
        text = self._vault.take_text(question, _QUESTION)
        own = self._vault.take_text(domain, _DOMAIN) if domain else ""
        seen = Seen(text, vector, tuple(passages), own, float(times + is_built))
        return Asked(seen, times, last_seen_s, bool(is_built))

    def place(self, questions: Sequence[str]) -> None:
        """Mark questions as belonging to a cluster."""
        with self._writing() as db:
            db.executemany(
                "UPDATE seen SET is_placed = 1 WHERE namespace = ? AND question = ?",
                [(self.namespace, self._question(q)) for q in questions],
            )

    # forgetting

    def older(self, before_s: float) -> list[Asked]:
        """Return what came in requests and was asked last before a time; no build gave it."""
        return self._select("NOT is_built AND last_seen_s < ?", before_s)

    def oldest(self) -> dict[str, float]:
        """Return by namespace when a question was seen last that is not seen for longest."""
        query = "SELECT namespace, MIN(last_seen_s) FROM seen WHERE NOT is_built GROUP BY 1"
        with self._lock:
            return {str(n): s for n, s in self._db.execute(query)}

    def forget(self, questions: Sequence[str]) -> None:
        """Remove questions, as they are written here."""
        with self._writing() as db:
            erasing(db)
            db.executemany(
                "DELETE FROM seen WHERE namespace = ? AND question = ?",
                [(self.namespace, self._question(q)) for q in questions],
            )

    def clear(self) -> None:
        """Remove every question and passage of this namespace."""
        with self._writing() as db:
            erasing(db)
            for table in _TABLES:
                db.execute(f"DELETE FROM {table.table} WHERE namespace = ?", (self.namespace,))

    def settle_clock(self, now_s: float) -> None:
        """Take what seems to come from after `now_s` for new: the clock was set back."""
        with self._writing() as db:
            db.execute("UPDATE seen SET last_seen_s = ? WHERE last_seen_s > ?", (now_s, now_s))

    def scrub(self) -> bool:
        """Rewrite the file without what was removed; tell whether that could be done."""
        with self._lock:
            return scrub(self._db)

    def faults(self) -> list[str]:
        """Say how many rows are not what was written; these are not used."""
        with self._lock:
            unsound = {t.table: t.num_unsound(self._db) for t in _TABLES}
        return [f"history: {n} damaged rows in {table}" for table, n in unsound.items() if n]

    def drop_unsound(self) -> None:
        """Remove damaged rows."""
        with self._writing() as db:
            for table in _TABLES:
                table.drop_unsound(db)

    def count(self) -> int:
        query = "SELECT COUNT(*) FROM seen WHERE namespace = ?"
        with self._lock:
            return int(self._db.execute(query, (self.namespace,)).fetchone()[0])

    def passages(self, ids: Sequence[str]) -> dict[str, Passage]:
        """Return the known ones among passages."""
        with self._lock:
            return self._known.named(ids)

    def known_passages(self) -> dict[str, Passage]:
        """Return every passage that was retrieved for a question, or noted for itself."""
        with self._lock:
            return {passage.id: passage for passage in self._known.all()}

    def passage_texts(self) -> list[Passage]:
        """Return every passage with every text that its id had."""
        with self._lock:
            return [*self._known.all(), *self._known.further()]

    def forget_passages(self, passages: Sequence[Passage]) -> None:
        """Remove texts of passages; an id that had other texts too keeps those."""
        gone = {(p.id, p.text) for p in passages}
        ids = {own for own, _ in gone}
        left = [p for p in self.passage_texts() if p.id in ids and (p.id, p.text) not in gone]
        self.replace_passages(dict.fromkeys(ids - {p.id for p in left}))
        with self._writing() as db:
            erasing(db)
            self._known.drop(ids)
            self._known.add(left)

    def replace_passages(self, successors: Mapping[str, Passage | None]) -> None:
        """Let what was retrieved name the successor of each passage, or leave it out."""
        with self._writing() as db:
            self._known.add(p for p in successors.values() if p is not None)
            query = "SELECT number, passages FROM sound_seen WHERE namespace = ?"
            rows = db.execute(query, (self.namespace,)).fetchall()
            changed = []
            for number, found in rows:
                old = json.loads(self._vault.take_text(found, _FOUND))
                new = list(dict.fromkeys(i for p in old for i in _now(p, successors)))
                if new != old:
                    changed.append((self._vault.put_text(json.dumps(new), _FOUND), number))
            db.executemany("UPDATE seen SET passages = ? WHERE number = ?", changed)
            self._known.drop(successors)


def _connected(path: Path, vault: Vault) -> sqlite3.Connection:
    db = open_to_write(path, _SCHEMA, digest_key=vault.digest_key)
    try:
        db.execute("BEGIN IMMEDIATE")
        known = {row[1] for row in db.execute("PRAGMA table_info(seen)")}
        for name, kind in _LATER.items():
            if name not in known:
                db.execute(f"ALTER TABLE seen ADD COLUMN {name} {kind}")
        db.execute("COMMIT")
        for table in _TABLES:
            table.lay_out(db, trusts_others=not vault.is_sealed)
    except BaseException:
        db.close()
        raise
    return db


def _now(passage: str, successors: Mapping[str, Passage | None]) -> list[str]:
    successor = successors.get(passage)
    if successor is not None:
        return [successor.id]
    return [] if passage in successors else [passage]
