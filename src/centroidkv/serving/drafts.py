"""Earlier answers as drafts: by the very same prompt, and by the cluster its question belongs to.

A SQLite file in the store folder, readable by the owner only; answers go through a vault, which may
seal them. What it gives is verified by the model before it counts, so a wrong or foreign row costs
time at most.
"""

import hashlib
import logging
import sqlite3
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from centroidkv.error_kinds import kind_of
from centroidkv.errors import CacheCorrupt
from centroidkv.kv.blocks import pack, unpack
from centroidkv.sqlite_files import open_or_begin
from centroidkv.sqlite_scrubbing import ages_of, erasing, oldest_of, scrub
from centroidkv.sqlite_sharing import SharedFiles
from centroidkv.types import Drafts
from centroidkv.vault import IN_THE_CLEAR, Vault

_log = logging.getLogger("centroidkv")

ANSWERS_PER_CLUSTER = 8
MOST_ANSWERS = 20_000  # of each namespace
# So many are kept between two looks at whether there are more: looking walks over all of them.
LOOK_EVERY = 64

_SCHEMA = """
CREATE TABLE IF NOT EXISTS drafts (
    number INTEGER PRIMARY KEY, namespace TEXT NOT NULL, prompt BLOB NOT NULL,
    cluster TEXT NOT NULL, answer BLOB NOT NULL, UNIQUE (namespace, prompt)
);
CREATE INDEX IF NOT EXISTS of_cluster ON drafts (namespace, cluster, number);
CREATE INDEX IF NOT EXISTS of_namespace ON drafts (namespace, number);
""" + ages_of("drafts")
_DROP_OLDEST = """
DELETE FROM drafts WHERE namespace = ? AND number <= (
    SELECT number FROM drafts WHERE namespace = ? ORDER BY number DESC LIMIT 1 OFFSET ?)
"""
_PROMPT, _ANSWER = "drafts.prompt", "drafts.answer"

__all__ = ["DraftStore", "Kept"]


@dataclass(frozen=True, slots=True)
class Kept:
    """A draft: its row, the tokens of the answer, and when it was stored, Unix time."""

    number: int
    answer: tuple[int, ...]
    stored_s: float


class DraftStore:
    """Answers of one KV namespace, the newest first to be guessed from. Safe for many threads."""

    def __init__(
        self,
        path: Path,
        namespace: str,
        *,
        quarantine: Path,
        vault: Vault = IN_THE_CLEAR,
        files: SharedFiles | None = None,
    ) -> None:
        self._namespace = namespace
        self._vault = vault
        self._warned = False
        self._num_kept = 0
        connect = partial(open_or_begin, path, _SCHEMA, quarantine=quarantine)
        self._file = (files or SharedFiles()).open(path, connect)
        self._lock, self._db = self._file.lock, self._file.db

    def find(self, prompt: Sequence[int], cluster: str) -> Drafts:
        """Return what an answer may be guessed from: at the least, the prompt."""
        key = self._key(prompt)
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
        answers = tuple(self._tokens(answer) for (answer,) in reversed(rows))
        return Drafts(tuple(prompt), self._tokens(same[0]) if same else (), answers)

    def _tokens(self, answer: object) -> tuple[int, ...]:
        try:
            return unpack(self._vault.take(answer, _ANSWER))
        except (CacheCorrupt, ValueError):
            return ()  # damaged: nothing is guessed from it

    def _key(self, prompt: Sequence[int]) -> bytes:
        return self._vault.put(hashlib.sha256(pack(prompt)).digest(), _PROMPT)

    def keep(self, prompt: Sequence[int], cluster: str, answer: Sequence[int]) -> None:
        """Keep an answer; an older one to the same prompt is replaced, and the oldest go.

        What goes is the namespace's own: nobody's answers make another's go.
        """
        key = self._key(prompt)
        row = (self._namespace, key, cluster, self._vault.put(pack(answer), _ANSWER))
        try:
            with self._lock, self._writing():
                # Not `INSERT OR REPLACE`, which tells no trigger that a row is gone.
                self._db.execute("DELETE FROM drafts WHERE namespace = ? AND prompt = ?", row[:2])
                self._db.execute("INSERT INTO drafts VALUES (NULL, ?, ?, ?, ?)", row)
                if self._num_kept % LOOK_EVERY == 0:
                    bound = (self._namespace, self._namespace, MOST_ANSWERS)
                    self._db.execute(_DROP_OLDEST, bound)
                self._num_kept += 1
        except sqlite3.Error as error:
            self._failed(error)

    @contextmanager
    def _writing(self) -> Iterator[None]:
        self._db.execute("BEGIN IMMEDIATE")
        try:
            yield
        except BaseException:
            self._db.execute("ROLLBACK")
            raise
        self._db.execute("COMMIT")

    def held(self, namespaces: Iterable[str], before_s: float | None = None) -> list[Kept]:
        """Return the drafts of some namespaces, of those stored before a time if one is given."""
        query = "SELECT number, answer, stored_s FROM drafts JOIN drafts_ages USING (number)"
        query += " WHERE namespace = ? AND stored_s < ?"
        limit = float("inf") if before_s is None else before_s
        with self._lock:
            rows = [r for n in namespaces for r in self._db.execute(query, (n, limit)).fetchall()]
        return [Kept(number, self._tokens(answer), stored_s) for number, answer, stored_s in rows]

    def oldest(self) -> dict[str, float]:
        """Return by namespace when its oldest draft was stored."""
        with self._lock:
            return oldest_of(self._db, "drafts")

    def forget(self, drafts: Sequence[Kept]) -> None:
        """Remove drafts."""
        with self._lock:
            erasing(self._db)
            rows = [(kept.number,) for kept in drafts]
            self._db.executemany("DELETE FROM drafts WHERE number = ?", rows)

    def settle_clock(self, now_s: float) -> None:
        """Take what seems to come from after `now_s` for new: the clock was set back."""
        with self._lock:
            query = "UPDATE drafts_ages SET stored_s = ? WHERE stored_s > ?"
            self._db.execute(query, (int(now_s), now_s))

    def scrub(self) -> bool:
        """Rewrite the file without what was removed; tell whether that could be done."""
        with self._lock:
            return scrub(self._db)

    def close(self) -> None:
        self._file.close()

    def _failed(self, error: sqlite3.Error) -> None:
        if not self._warned:
            self._warned = True
            _log.warning("answers are decoded without drafts: %s", kind_of(error))
