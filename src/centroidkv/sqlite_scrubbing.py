"""Leaving no trace in SQLite files: how old rows are, and rewriting a file after rows were deleted.

Ages are Unix seconds that SQLite itself notes, so that whatever writes a table cannot forget to.
Knows no table's meaning.
"""

import sqlite3

__all__ = ["NOW_S", "ages_of", "erasing", "oldest_of", "scrub"]

NOW_S = "CAST(strftime('%s', 'now') AS INTEGER)"


def ages_of(table: str) -> str:
    """Return the schema that notes in `TABLE_ages` when each row of a table was stored last.

    The table has an integer primary key `number`. Rows of before are as old as this. In a trigger,
    what the outer statement says of conflicts counts, so there is no `INSERT OR REPLACE` in these.
    """
    return f"""
CREATE TABLE IF NOT EXISTS {table}_ages (number INTEGER PRIMARY KEY, stored_s INTEGER NOT NULL);
CREATE TRIGGER IF NOT EXISTS {table}_stored AFTER INSERT ON {table} BEGIN
    DELETE FROM {table}_ages WHERE number = NEW.number;
    INSERT INTO {table}_ages VALUES (NEW.number, {NOW_S});
END;
CREATE TRIGGER IF NOT EXISTS {table}_stored_again AFTER UPDATE ON {table} BEGIN
    DELETE FROM {table}_ages WHERE number = NEW.number;
    INSERT INTO {table}_ages VALUES (NEW.number, {NOW_S});
END;
CREATE TRIGGER IF NOT EXISTS {table}_gone AFTER DELETE ON {table} BEGIN
    DELETE FROM {table}_ages WHERE number = OLD.number;
END;
INSERT OR IGNORE INTO {table}_ages SELECT number, {NOW_S} FROM {table}
    WHERE number NOT IN (SELECT number FROM {table}_ages);
"""


def oldest_of(db: sqlite3.Connection, table: str) -> dict[str, float]:
    """Return by namespace when the oldest row of a table with ages was stored."""
    query = f"SELECT namespace, MIN(stored_s) FROM {table} JOIN {table}_ages USING (number)"
    return {str(n): float(s) for n, s in db.execute(f"{query} GROUP BY namespace").fetchall()}


def erasing(db: sqlite3.Connection) -> None:
    """Let what is deleted from now on by this connection be overwritten with zeros."""
    db.execute("PRAGMA secure_delete = ON").fetchall()


def scrub(db: sqlite3.Connection) -> bool:
    """Rewrite a file without what was deleted, and empty its log.

    Returns:
        Whether that is done: not while another process reads or writes the file.
    """
    erasing(db)
    try:
        db.execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchall()
        db.execute("VACUUM")
        busy = db.execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchone()[0]
    except sqlite3.OperationalError:
        return False
    return not busy
