"""The manifest's tables, and how the file of an earlier version gets them in place."""

import sqlite3
from collections.abc import Callable
from pathlib import Path

from centroidkv.kv.manifest_checks import require_rows
from centroidkv.kv.policies import POLICIES, worth
from centroidkv.sqlite_checks import Checked
from centroidkv.sqlite_files import open_to_read, open_to_write
from centroidkv.sqlite_scrubbing import NOW_S

__all__ = ["OWNERS", "open_manifest", "settle_depths"]

VERSION = 2
_TABLES = """
CREATE TABLE IF NOT EXISTS blocks (
    id TEXT PRIMARY KEY, parent TEXT NOT NULL, namespace TEXT NOT NULL, tokens BLOB NOT NULL,
    is_full INTEGER NOT NULL, num_bytes INTEGER NOT NULL, last_used INTEGER NOT NULL
) WITHOUT ROWID;
CREATE INDEX IF NOT EXISTS children ON blocks (parent, tokens);
CREATE INDEX IF NOT EXISTS recency ON blocks (last_used);
CREATE TABLE IF NOT EXISTS prefixes (
    plan TEXT NOT NULL, cluster INTEGER NOT NULL, namespace TEXT NOT NULL, head TEXT NOT NULL,
    block TEXT NOT NULL, num_tokens INTEGER NOT NULL, PRIMARY KEY (plan, cluster, namespace, head)
) WITHOUT ROWID;
CREATE INDEX IF NOT EXISTS prefix_block ON prefixes (block);
CREATE TABLE IF NOT EXISTS pins (
    plan TEXT NOT NULL, cluster INTEGER NOT NULL, in_memory INTEGER NOT NULL,
    PRIMARY KEY (plan, cluster)
) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS remotes (id TEXT PRIMARY KEY) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS clocks (name TEXT PRIMARY KEY, value REAL NOT NULL) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS counters (name TEXT PRIMARY KEY, value INTEGER NOT NULL) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS owners (
    namespace TEXT PRIMARY KEY, owner TEXT NOT NULL, model TEXT NOT NULL
) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS ttls (owner TEXT PRIMARY KEY, ttl_s REAL NOT NULL) WITHOUT ROWID;
CREATE TRIGGER IF NOT EXISTS block_added AFTER INSERT ON blocks BEGIN
    INSERT INTO counters VALUES ('disk_bytes', NEW.num_bytes)
    ON CONFLICT (name) DO UPDATE SET value = value + NEW.num_bytes;
END;
CREATE TRIGGER IF NOT EXISTS block_removed AFTER DELETE ON blocks BEGIN
    UPDATE counters SET value = value - OLD.num_bytes WHERE name = 'disk_bytes';
END;
"""
# Whose KV is forgotten is said by these rows alone.
OWNERS = Checked("owners", key=["namespace"], columns=["namespace", "owner", "model"])
# Columns of version 2, with what a block of before has in them.
_ADDED = {
    "uses": "INTEGER NOT NULL DEFAULT 1",
    "depth": "INTEGER NOT NULL DEFAULT 0",  # tokens before the block
    "worth": "REAL NOT NULL DEFAULT 0",
    "level": "TEXT NOT NULL DEFAULT 'raw'",
    "in_remote": "INTEGER NOT NULL DEFAULT 0",
    "stored_s": "INTEGER NOT NULL DEFAULT 0",  # Unix time of the last use, to a minute
}
# SQLite notes the time itself, so that nothing that writes a row can forget to.
_STAMPS = f"""
CREATE TRIGGER IF NOT EXISTS block_stored AFTER INSERT ON blocks BEGIN
    UPDATE blocks SET stored_s = {NOW_S} WHERE id = NEW.id;
END;
CREATE TRIGGER IF NOT EXISTS block_used AFTER UPDATE OF last_used ON blocks
WHEN abs({NOW_S} - NEW.stored_s) > 60 BEGIN
    UPDATE blocks SET stored_s = {NOW_S} WHERE id = NEW.id;
END;
"""
_DEPTHS = """
WITH RECURSIVE placed (id, depth) AS (
    SELECT id, 0 FROM blocks WHERE parent = namespace
    UNION ALL SELECT b.id, p.depth + 64 FROM placed AS p JOIN blocks AS b ON b.parent = p.id
    WHERE p.depth < 1 << 24)
UPDATE blocks SET depth = p.depth, worth = worth(0, uses, p.depth, tokens, num_bytes)
FROM placed AS p WHERE p.id = blocks.id
"""


def open_manifest(
    path: Path, *, policy: str, read_only: bool, extra_bytes: int = 0
) -> sqlite3.Connection:
    """Open the manifest's file; to write, with every table and column of this version.

    Tokens have so many `extra_bytes` where they are sealed.

    Raises:
        sqlite3.OperationalError: The file cannot be opened, or stays locked.
        sqlite3.DatabaseError: It is damaged, or holds something else, in any row.
    """
    try:
        return _reading(path, extra_bytes) if read_only else _writing(path, policy, extra_bytes)
    except (UnicodeDecodeError, MemoryError) as error:  # names that are no text, absurd lengths
        raise sqlite3.DatabaseError(f"a schema that cannot be read ({error!r:.80})") from error


def _writing(path: Path, policy: str, extra_bytes: int) -> sqlite3.Connection:
    db = open_to_write(path, _TABLES, checked=[OWNERS])
    try:
        db.create_function("worth", 5, _worth(extra_bytes), deterministic=True)
        _bring_up(db)
        require_rows(db, extra_bytes)
        words = ", ".join(POLICIES[policy])
        db.execute(f"CREATE INDEX IF NOT EXISTS order_{policy} ON blocks ({words})")
    except BaseException:
        db.close()
        raise
    return db


def _reading(path: Path, extra_bytes: int) -> sqlite3.Connection:
    """Open to read; columns that the file does not have yet are read as their defaults."""
    db = open_to_read(path)
    missing = _missing(db)
    if missing:
        columns = ", ".join(f"{_ADDED[name].split()[-1]} AS {name}" for name in missing)
        db.execute(f"CREATE TEMP VIEW blocks AS SELECT *, {columns} FROM main.blocks")
        for table in ("pins (plan, cluster, in_memory)", "clocks (name, value)"):
            db.execute(f"CREATE TEMP TABLE {table}")
    for name, columns in (("owners", "namespace, owner, model"), ("ttls", "owner, ttl_s")):
        known = db.execute("SELECT 1 FROM main.sqlite_master WHERE name = ?", (name,)).fetchall()
        if not known:
            db.execute(f"CREATE TEMP TABLE {name} ({columns})")
    db.execute("CREATE TEMP VIEW sound_owners AS SELECT * FROM owners")  # nothing is forgotten
    db.execute("SELECT 1 FROM blocks LIMIT 1")
    try:
        require_rows(db, extra_bytes)
    except BaseException:
        db.close()
        raise
    return db


def _missing(db: sqlite3.Connection) -> list[str]:
    known = {str(row[1]) for row in db.execute("PRAGMA main.table_info(blocks)")}
    return [name for name in _ADDED if name not in known]


def _bring_up(db: sqlite3.Connection) -> None:
    """Add what the file of an earlier version lacks, all of it or nothing."""
    db.execute("BEGIN IMMEDIATE")
    try:
        missing = _missing(db)
        for name in missing:
            db.execute(f"ALTER TABLE blocks ADD COLUMN {name} {_ADDED[name]}")
        if missing:
            settle_depths(db)
        if "stored_s" in missing:
            db.execute(f"UPDATE blocks SET stored_s = {NOW_S}")
        # A write in any case: a file that cannot take one is to be noticed before a request is.
        db.execute(f"PRAGMA user_version = {VERSION}")
    except BaseException:
        db.execute("ROLLBACK")
        raise
    db.execute("COMMIT")
    db.executescript(_STAMPS)


def settle_depths(db: sqlite3.Connection) -> None:
    """Count for every block the tokens before it, where blocks came in any order."""
    db.execute(_DEPTHS)


def _worth(extra_bytes: int) -> Callable[[float, int, int, bytes, int], float]:
    def of_row(age: float, uses: int, depth: int, tokens: bytes, num_bytes: int) -> float:
        rate = (len(tokens) - extra_bytes) / 4 / max(1, num_bytes)
        return worth(age=age, uses=uses, depth_tokens=depth, tokens_per_byte=rate)

    return of_row
