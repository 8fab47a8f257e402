"""Fingerprints of files: SHA-256 of their content, remembered for as long as a file is the same.

Hashing half a gigabyte takes seconds, so digests are kept in a small per-user file. A model that
was trained on has the size of the one before it, and a copy or an image may keep its time; so
a file is known by what the file system says of it and by a sample of its content.
"""

import hashlib
import json
import logging
from collections.abc import Iterable
from pathlib import Path

from centroidkv.files import write_atomic

_log = logging.getLogger("centroidkv")

__all__ = ["SAMPLE_BYTES", "file_digest", "fingerprint", "folder_digest", "sampled_digest"]

# What is read of a remembered file each time, in pieces from its first byte to its last.
SAMPLE_BYTES = 2 << 20
_PIECES = 16


def fingerprint(*parts: str) -> str:
    """Combine strings into one SHA-256, unambiguous about where each part ends."""
    hasher = hashlib.sha256()
    for part in parts:
        raw = part.encode("utf-8", "surrogatepass")
        hasher.update(len(raw).to_bytes(8, "little") + raw)
    return hasher.hexdigest()


def file_digest(path: Path, *, memory: Path | None = None) -> str:
    """Return the SHA-256 of a file's content; `memory` is the file that remembers digests."""
    if memory is None:
        return _content_digest(path)
    stat, name = path.stat(), f"{path.resolve()}|"
    when = f"{stat.st_mtime_ns}|{stat.st_ctime_ns}|{stat.st_dev}|{stat.st_ino}"
    key = f"{name}{stat.st_size}|{when}|{sampled_digest(path, stat.st_size)}"
    known = _recall(memory)
    if key not in known:
        # What was remembered of this file holds no longer.
        known = {k: v for k, v in known.items() if not k.startswith(name)}
        known[key] = _content_digest(path)
        _remember(memory, known)
    return known[key]


def sampled_digest(path: Path, size: int) -> str:
    """Return the SHA-256 of pieces of a file of this size, of all of it where it is small."""
    hasher, piece = hashlib.sha256(), SAMPLE_BYTES // _PIECES
    with path.open("rb") as file:
        if size <= SAMPLE_BYTES:
            hasher.update(file.read())
        else:
            for number in range(_PIECES):
                file.seek((size - piece) * number // (_PIECES - 1))
                hasher.update(file.read(piece))
    return hasher.hexdigest()


def _content_digest(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def folder_digest(files: Iterable[Path], *, root: Path, memory: Path | None = None) -> str:
    """Return one digest over files and their paths relative to `root`."""
    parts: list[str] = []
    for path in sorted(files):
        parts += [path.relative_to(root).as_posix(), file_digest(path, memory=memory)]
    return fingerprint(*parts)


def _recall(memory: Path | None) -> dict[str, str]:
    if memory is None:
        return {}
    try:
        known = json.loads(memory.read_text("utf-8"))
    except (OSError, ValueError):
        return {}
    if not isinstance(known, dict):
        return {}
    return {key: value for key, value in known.items() if isinstance(value, str)}


def _remember(memory: Path, known: dict[str, str]) -> None:
    try:
        write_atomic(memory, json.dumps(known, indent=0).encode())
    except OSError as error:
        # A read-only home only costs hashing again: nothing for the user to do.
        _log.debug("digests are not remembered: %s", error)
