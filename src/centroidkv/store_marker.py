"""A store's first file, `store.json`: its format and id, and of an encrypted one the sealed key.

What is stored is sealed under the store's own random key, and that key under the user's, so that
changing the user's key writes one file. Knows nothing of what else lies in the folder.
"""

import base64
import contextlib
import json
import logging
import os
import re
import uuid
from pathlib import Path

from centroidkv.bounds import plain_json, read_bounded
from centroidkv.errors import CacheError, StoreError, StoreNotFound
from centroidkv.files import UNFINISHED, hand_over, user_of, write_atomic
from centroidkv.links import LOST_AND_FOUND, require_no_links
from centroidkv.locks import StoreLock
from centroidkv.sealing import Sealer, is_sealed
from centroidkv.secret_keys import KEY_BYTES
from centroidkv.vault import IN_THE_CLEAR, SealedVault, Vault

_log = logging.getLogger("centroidkv")

FORMAT = 1
SEALED_FORMAT = 2
MARKER = "store.json"
_MOST_BYTES = 64 << 10
_NAME = "the key of a store"
_ID = re.compile("[0-9a-f]{32}")

__all__ = ["MARKER", "change_key", "create_store", "open_vault", "store_id"]


def create_store(folder: Path, key: bytes | None) -> None:
    """Make a store in an empty or missing folder; with a key, an encrypted one.

    Raises:
        StoreError: There is something else in it, or it cannot be written.
        MissingExtra: `cryptography` is not installed.
    """
    is_strange = folder.exists() and (
        not folder.is_dir() or any(map(_is_foreign, folder.iterdir()))
    )
    # Looked for behind the others: whoever makes a store meanwhile writes the marker first.
    if is_strange and not (folder / MARKER).exists():
        raise StoreError(
            f"{folder} exists and is not a centroidkv store; give an empty or a new folder"
        )
    values: dict[str, object] = {"format": FORMAT}
    if key is not None:
        values = _sealed(os.urandom(KEY_BYTES), key)
    try:
        was_there = folder.exists()
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        _keep_private(folder, may_fail=was_there)
        if not was_there:
            hand_over(folder)
        # Another process may make it at the same time, with another store key.
        with _alone(folder):
            if not (folder / MARKER).exists():
                _write(folder, {**values, "id": _new_id()})
    except OSError as error:
        raise StoreError(f"cannot create a store at {folder}: {error.strerror}") from error


def _keep_private(folder: Path, *, may_fail: bool) -> None:
    """Leave a folder to its owner alone; one that was there may be somebody else's to change."""
    try:
        folder.chmod(0o700)
    except OSError:
        if not may_fail:
            raise
        mode = folder.stat().st_mode & 0o777
        if mode & 0o077:
            _log.warning(
                "%s belongs to %s and keeps its mode %04o: others may list it, and who may write "
                "there can replace files; the files themselves are this user's alone",
                folder,
                user_of(folder),
                mode,
            )


def _alone(folder: Path) -> StoreLock:
    require_no_links(folder)
    return StoreLock(folder / f"{UNFINISHED}{MARKER}", mode=0o600)


def _write(folder: Path, values: dict[str, object]) -> None:
    """Write the marker, and have it written before anything is said of it."""
    write_atomic(folder / MARKER, json.dumps(values).encode())
    if os.name == "posix":
        handle = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)


def _is_foreign(path: Path) -> bool:
    """Tell a file of somebody else's from what a process left that makes a store, or was killed."""
    if path.name == LOST_AND_FOUND and not path.is_symlink() and path.is_dir():
        return False
    return not path.name.startswith(UNFINISHED) and path.name != MARKER


def open_vault(folder: Path, key: bytes | None) -> Vault:
    """Return what a store's files are read and written with.

    Raises:
        StoreError: It is of another format, cannot be read, or not with this key.
        MissingExtra: `cryptography` is not installed.
    """
    values = _read(folder)
    if key is None and values["format"] == SEALED_FORMAT:
        raise StoreError(
            f"the store {folder} is encrypted; give its key: Engine.open(..., "
            "encryption_key='env:NAME'), or --encryption-key env:NAME"
        )
    if key is None:
        return IN_THE_CLEAR
    if values["format"] == FORMAT:
        raise StoreError(
            f"the store {folder} was made without encryption_key and lies in clear; build a new "
            "store with the key, or leave it out"
        )
    return SealedVault(_opened(folder, values, key))


def store_id(folder: Path, *, may_write: bool = True) -> str:
    """Return what tells a store from others that share a server with it: 32 hexadecimal digits.

    A marker without one, of an earlier version or a damaged one, gets a new one. "" where that
    cannot be written.
    """
    with contextlib.suppress(OSError):
        found = _id_of(_read(folder))
        if found or not may_write:
            return found
        with _alone(folder):
            values = _read(folder)
            if not _id_of(values):  # as another process may just have done
                _write(folder, values := {**values, "id": _new_id()})
            return _id_of(values)
    return ""


def _id_of(values: dict[str, object]) -> str:
    found = str(values.get("id"))
    return found if _ID.fullmatch(found) else ""


def _new_id() -> str:
    return uuid.uuid4().hex


def change_key(folder: Path, key: bytes, new_key: bytes) -> None:
    """Let a store be opened with another key from now on; what is stored stays as it is.

    Raises:
        StoreNotFound: There is none.
        StoreError: It is not encrypted, or not with `key`, or cannot be written.
        MissingExtra: `cryptography` is not installed.
    """
    if not (folder / MARKER).exists():
        raise StoreNotFound(f"there is no store at {folder}")
    try:
        with _alone(folder):
            values = _read(folder)
            if values["format"] == FORMAT:
                raise StoreError(f"the store {folder} was made without encryption_key; it has none")
            _write(folder, {**values, **_sealed(_opened(folder, values, key), new_key)})
    except OSError as error:
        raise StoreError(f"cannot write {folder / MARKER}: {error.strerror}") from error


def _sealed(store_key: bytes, key: bytes) -> dict[str, object]:
    sealed = Sealer(key).seal(store_key, _NAME)
    return {"format": SEALED_FORMAT, "key": base64.b64encode(sealed).decode()}


def _opened(folder: Path, values: dict[str, object], key: bytes) -> bytes:
    try:
        store_key = Sealer(key).open(base64.b64decode(str(values.get("key"))), _NAME)
    except (CacheError, ValueError) as error:
        raise StoreError(
            f"encryption_key does not open the store {folder}: it is another store's or an "
            f"earlier one, or {folder / MARKER} is damaged"
        ) from error
    if len(store_key) != KEY_BYTES:
        raise StoreError(f"{folder / MARKER} holds a key of another length")
    return store_key


def _read(folder: Path) -> dict[str, object]:
    """Return what the marker says: one of the two formats.

    Raises:
        StoreError: It says something else, or cannot be read.
    """
    marker = folder / MARKER
    try:
        values = plain_json(read_bounded(marker, _MOST_BYTES))
        found = values["format"]
    except (OSError, ValueError, LookupError, TypeError) as error:
        remedy = f'if this is a store, write {{"format": {FORMAT}}} into that file'
        if _holds_sealed(folder):
            remedy = "the store is encrypted and lost without it: put a copy of that file back"
        raise StoreError(f"{marker} cannot be read ({error}); {remedy}") from error
    if type(found) is not int or found not in (FORMAT, SEALED_FORMAT):
        raise StoreError(
            f"{folder} has store format {found!r:.20}, this version reads {FORMAT} and "
            f"{SEALED_FORMAT}; use the version that wrote it, or build a new store"
        )
    return dict(values)


def _holds_sealed(folder: Path) -> bool:
    """Tell whether the first block or plan of a folder is sealed."""
    for pattern in ("blocks/??/*.safetensors", "plans/*.plan"):
        for path in folder.glob(pattern):
            with path.open("rb") as file:
                return is_sealed(file.read(16))
    return False
