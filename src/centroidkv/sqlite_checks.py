"""Noticing damage in SQLite files: that of pages, which SQLite finds, and that of rows.

SQLite checks how pages hang together, not what stands in them: a flipped bit in a text is another
text. So tables whose texts are served keep a digest a row, which SQLite itself writes by triggers,
and are read through a view of the rows that still have theirs. Knows no table's meaning.
"""

import hashlib
import sqlite3
from collections.abc import Sequence

__all__ = ["Checked", "is_damage", "read_any_text", "require_sound", "teach_digest"]

_PASSING = {
    sqlite3.SQLITE_BUSY,
    sqlite3.SQLITE_LOCKED,
    sqlite3.SQLITE_CANTOPEN,
    sqlite3.SQLITE_IOERR,
    sqlite3.SQLITE_FULL,
    sqlite3.SQLITE_NOMEM,
    sqlite3.SQLITE_PERM,
    sqlite3.SQLITE_PROTOCOL,
    sqlite3.SQLITE_INTERRUPT,
}


def is_damage(error: sqlite3.Error) -> bool:
    """Tell a damaged file from one that is busy, out of reach or on a failing disk.

    One that refuses to be written counts as damaged: a byte of its header says so. A folder that
    cannot be written to is noticed before.
    """
    if not isinstance(error, sqlite3.DatabaseError):
        return False
    return getattr(error, "sqlite_errorcode", sqlite3.SQLITE_ERROR) & 0xFF not in _PASSING


def require_sound(db: sqlite3.Connection) -> None:
    """Run SQLite's own check of a file.

    Raises:
        sqlite3.DatabaseError: It is damaged.
    """
    found = [str(row[0]) for row in db.execute("PRAGMA quick_check(1)")]
    if found != ["ok"]:
        raise sqlite3.DatabaseError(found[0] if found else "it cannot be checked")


def read_any_text(db: sqlite3.Connection) -> None:
    """Let texts that are not UTF-8 any more be read, with a mark where they are not."""
    db.text_factory = lambda raw: raw.decode("utf-8", "replace")


def teach_digest(db: sqlite3.Connection, key: bytes = b"") -> None:
    """Let SQL of a connection call `row_digest(...)`, which the triggers need.

    With a `key`, only who has it can make a digest that fits.
    """

    def digest(*values: object) -> bytes:
        hasher = hashlib.blake2b(digest_size=16 if key else 8, key=key)
        for value in values:
            raw = value if isinstance(value, bytes) else str(value).encode("utf-8", "surrogatepass")
            hasher.update(len(raw).to_bytes(8, "little") + raw)
        return hasher.digest()

    db.create_function("row_digest", -1, digest, deterministic=True)


class Checked:
    """A table whose rows have digests in `TABLE_checks`, and its view of sound rows.

    Args:
        table: The table's name.
        key: The columns that name a row.
        columns: Those that the digest is of, the key among them.
    """

    def __init__(self, table: str, *, key: Sequence[str], columns: Sequence[str]) -> None:
        self.table = table
        self.sound = f"sound_{table}"
        self._key = list(key)
        self._columns = list(columns)

    def lay_out(self, db: sqlite3.Connection, *, trusts_others: bool = True) -> None:
        """Make the digests' table, triggers and the view.

        Rows that have no digest, of a version before these, count as sound if `trusts_others`.
        These are the connection's own (`TEMP`): a file's schema is not trusted to call functions.
        """
        name, key = f"{self.table}_checks", ", ".join(self._key)
        query = "SELECT 1 FROM main.sqlite_master WHERE name = ?"
        is_new = not db.execute(query, (name,)).fetchone()
        table = f"CREATE TABLE IF NOT EXISTS {name} ({key}, digest BLOB NOT NULL,"
        db.execute(f"{table} PRIMARY KEY ({key})) WITHOUT ROWID")
        if is_new and trusts_others:
            rows = f"SELECT {key}, row_digest({self._values(self.table)}) FROM {self.table}"
            db.execute(f"INSERT OR REPLACE INTO {name} {rows}")
        for trigger in self._triggers(name):
            db.execute(f"CREATE TEMP TRIGGER {self.table}_{trigger}")
        # The digests' columns have no type, and against a typed one their index is of no use: `+`
        # takes the type away. `CROSS JOIN` keeps the order, a digest for each row.
        same = " AND ".join(f"c.{k} = +{self.table}.{k}" for k in self._key)
        db.execute(
            f"CREATE TEMP VIEW {self.sound} AS SELECT {self.table}.* FROM main.{self.table}"
            f" CROSS JOIN main.{name} AS c ON {same}"
            f" WHERE c.digest = row_digest({self._values(self.table)})"
        )

    def _triggers(self, name: str) -> list[str]:
        keys = ", ".join(f"NEW.{key}" for key in self._key)
        # What else changes says nothing of a row that was damaged before.
        columns = ", ".join(self._columns)
        # Not `INSERT OR REPLACE`: in a trigger, what the outer statement says of conflicts counts.
        put = (
            f"DELETE FROM {name} WHERE {self._same('NEW')};"
            f" INSERT INTO {name} VALUES ({keys}, row_digest({self._values('NEW')}))"
        )
        drop = f"DELETE FROM {name} WHERE {self._same('OLD')}"
        return [
            f"noted AFTER INSERT ON main.{self.table} BEGIN {put}; END",
            f"changed AFTER UPDATE OF {columns} ON main.{self.table} BEGIN {put}; END",
            f"left AFTER DELETE ON main.{self.table} BEGIN {drop}; END",
        ]

    def num_unsound(self, db: sqlite3.Connection) -> int:
        """Count the rows that are not what was written; they are not served."""
        query = f"SELECT (SELECT COUNT(*) FROM {self.table}) - (SELECT COUNT(*) FROM {self.sound})"
        return int(db.execute(query).fetchone()[0])

    def drop_if_unsound(self, db: sqlite3.Connection, where: str, values: Sequence[object]) -> None:
        """Remove a row that is not what was written, so that it can be written anew."""
        here, sound = (f"SELECT 1 FROM {name} WHERE {where}" for name in (self.table, self.sound))
        if db.execute(here, values).fetchone() and not db.execute(sound, values).fetchone():
            db.execute(f"DELETE FROM {self.table} WHERE {where}", values)

    def drop_unsound(self, db: sqlite3.Connection) -> None:
        """Remove the rows that are not what was written."""
        key = ", ".join(self._key)
        sound = f"(SELECT {key} FROM {self.sound})"
        db.execute(f"DELETE FROM {self.table} WHERE ({key}) NOT IN {sound}")

    def _values(self, row: str) -> str:
        # As bytes: a damaged text need not be one.
        return ", ".join(f"CAST({row}.{column} AS BLOB)" for column in self._columns)

    def _same(self, row: str) -> str:
        return " AND ".join(f"{key} = {row}.{key}" for key in self._key)
