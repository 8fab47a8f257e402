"""Opening the SQLite files of a store: one way to write, one way to read without a trace."""

import contextlib
import logging
import os
import sqlite3
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from centroidkv.files import hand_over, set_aside, user_of
from centroidkv.sqlite_checks import Checked, is_damage, read_any_text, require_sound, teach_digest

_log = logging.getLogger("centroidkv")

__all__ = ["open_or_begin", "open_to_read", "open_to_write"]

WAIT_S = 10
# Of each connection. SQLite's own 2 MB save nothing measurable, the system has the pages too, and
# a process with many tenants has many connections.
PAGE_CACHE_KIB = 256
IN_MEMORY = ":memory:"


class _Connection(sqlite3.Connection):
    """Tells of damage as SQLite does even where SQLite's own words for it are no text any more.

    Its messages quote what it cannot read, and Python cannot read those.
    """

    def execute(self, sql: str, parameters: Any = (), /) -> sqlite3.Cursor:
        with _told():
            return super().execute(sql, parameters)

    def executemany(self, sql: str, parameters: Any, /) -> sqlite3.Cursor:
        with _told():
            return super().executemany(sql, parameters)

    def executescript(self, script: str, /) -> sqlite3.Cursor:
        with _told():
            return super().executescript(script)


@contextlib.contextmanager
def _told() -> Iterator[None]:
    try:
        yield
    except UnicodeDecodeError as error:
        message = error.object.decode("utf-8", "replace")
        raise sqlite3.DatabaseError(message) from error


def open_to_write(
    path: Path, schema: str, *, checked: Sequence[Checked] = (), digest_key: bytes = b""
) -> sqlite3.Connection:
    """Open a file, or make one that only its owner reads, and lay out what is missing of `schema`.

    The tables that `checked` names get digests of their rows, keyed if there is a `digest_key`.

    `:memory:` is one that is not kept. The connection commits each statement by itself and may be
    used by one thread after another.

    Raises:
        sqlite3.OperationalError: The file cannot be opened, or stays locked.
        sqlite3.DatabaseError: It is damaged.
    """
    if str(path) != IN_MEMORY:
        _require_unlinked(path)
        _shield(path)
        _require_access(path)
    connection = _connect(path)
    try:
        _settle(connection)
        teach_digest(connection, digest_key)
        connection.execute("PRAGMA journal_mode = WAL")
        connection.execute("PRAGMA synchronous = NORMAL")
        require_sound(connection)
        connection.executescript(schema)
        for table in checked:
            table.lay_out(connection, trusts_others=not digest_key)
    except BaseException:
        connection.close()
        raise
    return connection


def open_or_begin(path: Path, schema: str, *, quarantine: Path) -> sqlite3.Connection:
    """Open a file to write; a damaged one is set aside with a warning, and a new one begun."""
    try:
        return open_to_write(path, schema)
    except sqlite3.DatabaseError as error:
        if not is_damage(error):
            raise
        _log.warning("%s is damaged (%s); a new one is begun", path, error)
        set_aside(path, quarantine)
        return open_to_write(path, schema)


def open_to_read(path: Path) -> sqlite3.Connection:
    """Open a file without leaving files of SQLite's own beside it, unless a writer has some.

    Raises:
        sqlite3.OperationalError: The file cannot be opened, or stays locked.
        sqlite3.DatabaseError: It is damaged.
    """
    log = path.with_name(path.name + "-wal")
    options = "mode=ro" if log.exists() and log.stat().st_size else "mode=ro&immutable=1"
    uri = f"{path.absolute().as_uri()}?{options}"
    connection = _connect(uri, uri=True)
    try:
        _settle(connection)
    except BaseException:
        connection.close()
        raise
    return connection


def _connect(path: Path | str, *, uri: bool = False) -> sqlite3.Connection:
    return sqlite3.connect(
        path, uri=uri, check_same_thread=False, timeout=WAIT_S, factory=_Connection
    )


def _require_unlinked(path: Path) -> None:
    if path.is_symlink():
        raise sqlite3.OperationalError(f"{path} is a link; what it leads to is left alone")


def _shield(path: Path) -> None:
    """Make a file its owner's alone before SQLite opens it: what lies beside it gets its mode."""
    with contextlib.suppress(OSError):  # SQLite says what is wrong
        is_new = not path.exists()
        path.touch(mode=0o600)
        path.chmod(0o600)
        if is_new:
            hand_over(path)


def _require_access(path: Path) -> None:
    if path.exists() and not os.access(path, os.R_OK | os.W_OK):
        error = sqlite3.OperationalError(
            f"{path} may not be read and written by this user: it belongs to {user_of(path)}; it "
            "is left as it is. Give it to the user of the store's folder with chown"
        )
        error.sqlite_errorcode = sqlite3.SQLITE_PERM  # else it would count as damaged
        raise error


def _settle(connection: sqlite3.Connection) -> None:
    """Set what holds for every file, read or written."""
    connection.isolation_level = None
    read_any_text(connection)
    _distrust(connection)
    connection.execute(f"PRAGMA cache_size = -{PAGE_CACHE_KIB}")  # the first to read the file


def _distrust(connection: sqlite3.Connection) -> None:
    """Have pages checked as they are read, and run nothing that the file's schema asks for.

    As SQLite advises for files that others may have written; plain triggers still work.
    """
    connection.execute("PRAGMA trusted_schema = OFF")
    connection.execute("PRAGMA cell_size_check = ON")
