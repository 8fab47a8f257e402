"""The folder of an embedded centroid index, without opening the index: digest, erasing, rewriting.

Knows of Chroma only where its files lie and that its texts are in one SQLite file.
"""

import logging
import os
import shutil
import sqlite3
import struct
from pathlib import Path

from filelock import FileLock, Timeout

from centroidkv.errors import IndexUnavailable
from centroidkv.fingerprint import folder_digest
from centroidkv.sqlite_scrubbing import scrub

_log = logging.getLogger("centroidkv")

__all__ = [
    "digest_of",
    "embedded_faults",
    "erase_folder",
    "prepare_folder",
    "scrub_file",
    "shield",
    "zero_unused",
]

WAIT_S = 10.0
_HEADER = struct.Struct("<i4Q")
_LENGTH_BYTES = 4


def digest_of(folder: Path) -> str:
    """Return the digest of a folder's files."""
    return folder_digest([p for p in folder.rglob("*") if p.is_file()], root=folder)


def prepare_folder(folder: Path, quarantine: Path) -> None:
    """Leave a folder that is safe to open: sound as last closed, or empty."""
    seal = folder.with_name("chroma.digest")
    if folder.exists():
        expected = seal.read_bytes() if seal.exists() else b""
        if expected != digest_of(folder).encode():
            _log.warning(
                "%s was not closed cleanly or is damaged; it is rebuilt from the plan", folder
            )
            quarantine.mkdir(mode=0o700, exist_ok=True)
            shutil.rmtree(quarantine / "chroma", ignore_errors=True)
            os.replace(folder, quarantine / "chroma")
    seal.unlink(missing_ok=True)
    folder.mkdir(mode=0o700, exist_ok=True)


def embedded_faults(folder: Path) -> list[str]:
    """Tell what is wrong with a Chroma folder without opening it; [] while it is in use."""
    lock = FileLock(folder.with_name("chroma.lock"), mode=0o600)
    try:
        with lock.acquire(timeout=0):
            seal = folder.with_name("chroma.digest")
            sealed = seal.read_bytes() if seal.exists() else b""
            if folder.exists() and sealed != digest_of(folder).encode():
                return [f"{folder}: damaged or not closed cleanly; it is rebuilt when opened"]
    except (Timeout, OSError):
        # In use by its owner, or not ours to lock.
        pass
    return []


def shield(folder: Path) -> None:
    """Leave a folder and all in it to its owner alone, whatever mode the native code gave them."""
    for path in (folder, *folder.rglob("*")):
        path.chmod(0o700 if path.is_dir() else 0o600)


def zero_unused(folder: Path) -> None:
    """Overwrite what the index's files hold behind their last element.

    The native index reserves room for elements and writes it to disk as it finds it: whatever the
    process had in that memory before, a question perhaps. `header.bin` begins with a version (four
    bytes), then, eight bytes each: an offset, the reserved and the used elements, bytes an element.
    """
    for header in folder.rglob("header.bin"):
        raw = header.read_bytes()[: _HEADER.size]
        if len(raw) < _HEADER.size:
            continue
        version, _, reserved, used, num_bytes = _HEADER.unpack(raw)
        for name, each in (("data_level0.bin", num_bytes), ("length.bin", _LENGTH_BYTES)):
            path = header.with_name(name)
            is_known = version == 1 and path.exists() and used <= reserved
            if is_known and path.stat().st_size == reserved * each:
                with path.open("r+b") as file:
                    file.seek(used * each)
                    file.write(bytes((reserved - used) * each))


def erase_folder(folder: Path) -> None:
    """Delete the folder of an index that is not open.

    Raises:
        IndexUnavailable: Another process has it open.
    """
    lock = FileLock(folder.with_name("chroma.lock"), mode=0o600)
    try:
        with lock.acquire(timeout=0):
            folder.with_name("chroma.digest").unlink(missing_ok=True)
            shutil.rmtree(folder, ignore_errors=True)
    except Timeout as error:
        raise IndexUnavailable(f"{folder} is in use by another process") from error


def scrub_file(path: Path) -> None:
    """Rewrite the file of an open index without what was deleted.

    Raises:
        IndexUnavailable: It is in use.
    """
    try:
        db = sqlite3.connect(path, timeout=WAIT_S, isolation_level=None)
        try:
            is_done = scrub(db)
        finally:
            db.close()
    except sqlite3.Error as error:
        raise IndexUnavailable(f"{path} cannot be rewritten: {error}") from error
    if not is_done:
        raise IndexUnavailable(f"{path} cannot be rewritten while it is in use")
