"""The folder of an embedded centroid index, without opening the index: digest, erasing, rewriting.

Knows of Chroma only where its files lie and that its texts are in one SQLite file.
"""

import contextlib
import logging
import os
import shutil
import sqlite3
import struct
from pathlib import Path

from filelock import Timeout

from centroidkv.errors import IndexUnavailable
from centroidkv.files import hand_over, make_folder, set_aside
from centroidkv.fingerprint import folder_digest
from centroidkv.links import has_links, open_unlinked
from centroidkv.locks import StoreLock
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
_CHUNK_BYTES = 1 << 20
# Of the folders set aside, the first and the latest are kept: they are large, and a plan has all
# that is in them.
MOST_FOLDERS = 2


def digest_of(folder: Path) -> str:
    """Return the digest of a folder's files."""
    return folder_digest([p for p in folder.rglob("*") if p.is_file()], root=folder)


def prepare_folder(folder: Path, quarantine: Path) -> None:
    """Leave a folder that is safe to open: sound as last closed, or empty.

    Raises:
        IndexUnavailable: What is in its place cannot be moved or deleted.
    """
    try:
        if os.path.lexists(folder) and not _is_as_closed(folder):
            _log.warning(
                "%s was not closed cleanly or is damaged; it is rebuilt from the plan", folder
            )
            set_aside(folder, quarantine, most=MOST_FOLDERS)
        folder.with_name("chroma.digest").unlink(missing_ok=True)
        make_folder(folder)
    except OSError as error:
        raise IndexUnavailable(f"{folder} cannot be made ready: {error}") from error


def _is_as_closed(folder: Path) -> bool:
    # Native code writes through links, and who can put one there can write a digest that fits.
    if has_links(folder):
        return False
    seal = folder.with_name("chroma.digest")
    return seal.exists() and seal.read_bytes() == digest_of(folder).encode()


def embedded_faults(folder: Path) -> list[str]:
    """Tell what is wrong with a Chroma folder without opening it; [] while it is in use."""
    lock = StoreLock(folder.with_name("chroma.lock"), mode=0o600)
    try:
        with lock.acquire(timeout=0):
            if os.path.lexists(folder) and not _is_as_closed(folder):
                return [f"{folder}: damaged or not closed cleanly; it is rebuilt when opened"]
    except (Timeout, OSError):
        # In use by its owner, or not ours to lock.
        pass
    return []


def shield(folder: Path) -> None:
    """Leave a folder and all in it to its owner alone, whatever mode the native code gave them."""
    for path in (folder, *folder.rglob("*")):
        if not path.is_symlink():
            path.chmod(0o700 if path.is_dir() else 0o600)
            hand_over(path)


def zero_unused(folder: Path) -> None:
    """Overwrite what the index's files hold behind their last element.

    The native index reserves room for elements and writes it to disk as it finds it: whatever the
    process had in that memory before, a question perhaps. `header.bin` begins with a version (four
    bytes), then, eight bytes each: an offset, the reserved and the used elements, bytes an element.
    """
    for header in folder.rglob("header.bin"):
        with contextlib.suppress(OSError), os.fdopen(open_unlinked(header, os.O_RDONLY), "rb") as f:
            raw = f.read(_HEADER.size)
            if len(raw) < _HEADER.size:
                continue
            version, _, reserved, used, num_bytes = _HEADER.unpack(raw)
            if version == 1 and used <= reserved:
                for name, each in (("data_level0.bin", num_bytes), ("length.bin", _LENGTH_BYTES)):
                    _zero(header.with_name(name), used * each, reserved * each)


def _zero(path: Path, start: int, end: int) -> None:
    """Overwrite the end of a file, if that is where it ends; what is no file of ours is left."""
    with contextlib.suppress(OSError), os.fdopen(open_unlinked(path, os.O_RDWR), "r+b") as file:
        if os.fstat(file.fileno()).st_size != end:
            return
        file.seek(start)
        for at in range(start, end, _CHUNK_BYTES):
            file.write(bytes(min(_CHUNK_BYTES, end - at)))


def erase_folder(folder: Path) -> None:
    """Delete the folder of an index that is not open.

    Raises:
        IndexUnavailable: Another process has it open, or it cannot be locked.
    """
    lock = StoreLock(folder.with_name("chroma.lock"), mode=0o600)
    try:
        with lock.acquire(timeout=0):
            folder.with_name("chroma.digest").unlink(missing_ok=True)
            shutil.rmtree(folder, ignore_errors=True)
    except Timeout as error:
        raise IndexUnavailable(
            f"{folder} is in use by another process, or another engine of this one"
        ) from error
    except OSError as error:
        raise IndexUnavailable(f"{folder} cannot be locked or deleted: {error}") from error


def drop_strays(folder: Path) -> None:
    """Delete what deleted collections leave: Chroma unlinks no index folder of theirs."""
    db = sqlite3.connect(folder / "chroma.sqlite3", timeout=WAIT_S)
    try:
        known = {str(name) for (name,) in db.execute("SELECT id FROM segments")}
    finally:
        db.close()
    for path in folder.iterdir():
        if path.is_dir() and not path.is_symlink() and path.name not in known:
            shutil.rmtree(path, ignore_errors=True)


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
