"""What is being forgotten, written down before anything is removed: a kill half-way loses nothing.

A folder of one file each, removed when it is done. The files hold what is to be forgotten, so they
are readable by the owner only and go first of all when nothing is left to do.
"""

import contextlib
import json
import logging
import math
import uuid
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from centroidkv.bounds import MOST_TEXT_BYTES, plain_json
from centroidkv.errors import CacheError, StoreError
from centroidkv.files import UNFINISHED, make_folder
from centroidkv.locks import StoreLock
from centroidkv.privacy.wanted import Wanted
from centroidkv.vault import IN_THE_CLEAR, Vault

_log = logging.getLogger("centroidkv")

__all__ = ["ForgetLog", "Intent"]


@dataclass(frozen=True, slots=True)
class Intent:
    """One forgetting under way, of one tenant."""

    path: Path
    tenant: str
    wanted: Wanted


class ForgetLog:
    """The forgettings of a store that are not finished, in a folder of the store."""

    def __init__(
        self, store: Path, vault: Vault = IN_THE_CLEAR, *, folder: str = "forgetting"
    ) -> None:
        self._folder = store / folder
        self._vault = vault

    @contextlib.contextmanager
    def alone(self, longest_s: float = math.inf) -> Iterator[None]:
        """Let one process forget at a time; clear away what was killed while it was written.

        Raises:
            StoreError: The lock cannot be had, or not within `longest_s`.
        """
        lock = StoreLock(self._folder / "lock", mode=0o600)
        try:
            make_folder(self._folder)
            lock.acquire(timeout=-1 if longest_s == math.inf else max(0.0, longest_s))
        except OSError as error:
            raise StoreError(f"cannot lock {self._folder}: {error}") from error
        try:
            for half in self._folder.glob(f"{UNFINISHED}*"):
                half.unlink(missing_ok=True)
            yield
        finally:
            lock.release()

    def begin(self, tenant: str, wanted: Wanted) -> Intent:
        """Note what is to be forgotten."""
        path = self._folder / f"{uuid.uuid4().hex}.json"
        row = json.dumps({"tenant": tenant, "wanted": wanted.as_dict()})
        self._vault.write(path, row.encode())
        return Intent(path, tenant, wanted)

    def end(self, intent: Intent) -> None:
        """Note that it is forgotten."""
        intent.path.unlink(missing_ok=True)

    def open_intents(self) -> list[Intent]:
        """Return what was begun and not ended; one that cannot be read is left where it is."""
        found = []
        for path in sorted(self._folder.glob("*.json")):
            try:
                row = plain_json(self._vault.read(path, MOST_TEXT_BYTES))
                found.append(Intent(path, row["tenant"], Wanted.from_dict(row["wanted"])))
            except (CacheError, OSError, ValueError, KeyError, TypeError) as error:
                _log.warning("%s cannot be read, forget it again: %s", path, error)
        return found

    @property
    def has_remains(self) -> bool:
        """Tell whether anything was begun and not ended, without a lock."""
        return any(self._folder.glob("*.json")) or any(self._folder.glob(f"{UNFINISHED}*"))
