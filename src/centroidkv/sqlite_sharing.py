"""One connection for each SQLite file of a store, whoever in this process uses it.

A store has an engine for each of its tenants. With connections of their own, some hundred tenants
take all file handles that a process may have. Knows no table.
"""

import os
import sqlite3
import threading
from collections.abc import Callable
from pathlib import Path

__all__ = ["OpenFile", "SharedFiles"]


class OpenFile:
    """What one user has of an open file: its connection, and the lock to use it under."""

    def __init__(self, shared: "_Shared", leave: Callable[["_Shared"], None]) -> None:
        self.db = shared.db
        self.lock = shared.lock
        self._shared: _Shared | None = shared
        self._leave = leave

    def close(self) -> None:
        """Use it no longer; the last user closes the file. Safe to call twice."""
        with self.lock:
            shared, self._shared = self._shared, None
            if shared is not None:
                self._leave(shared)


class _Shared:
    def __init__(self, path: Path, db: sqlite3.Connection) -> None:
        self.db = db
        self.lock = threading.RLock()
        self.num_users = 0
        self._at = _identity(path)
        self._process = os.getpid()

    def is_at(self, path: Path) -> bool:
        """Tell whether a path still leads to this file, and not to one begun in its place.

        Of another process, which this one was forked from, no connection may be used.
        """
        return self._process == os.getpid() and self._at == _identity(path)


class SharedFiles:
    """The files that the engines of one store have open. Safe for many threads."""

    def __init__(self) -> None:
        self._open: dict[Path, _Shared] = {}
        self._lock = threading.Lock()

    def open(self, path: Path, connect: Callable[[], sqlite3.Connection]) -> OpenFile:
        """Return a file that is open already, or what `connect` opens.

        Raises:
            sqlite3.Error: As of `connect`.
        """
        with self._lock:
            shared = self._open.get(path)
            if shared is None or not shared.is_at(path):
                shared = self._open[path] = _Shared(path, connect())
            shared.num_users += 1
        return OpenFile(shared, self._leave)

    def _leave(self, shared: _Shared) -> None:
        with self._lock:
            shared.num_users -= 1
            if shared.num_users:
                return
            self._open = {path: one for path, one in self._open.items() if one is not shared}
        shared.db.close()


def _identity(path: Path) -> tuple[int, int] | None:
    try:
        found = path.stat()
    except OSError:
        return None
    return found.st_dev, found.st_ino
