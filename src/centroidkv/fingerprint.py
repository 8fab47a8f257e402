"""Fingerprints of files: SHA-256 of their content, remembered by path, size and time.

Hashing half a gigabyte takes seconds, so digests are kept in a small per-user file. A changed
file has another size or modification time and is hashed again.
"""

import hashlib
import json
import logging
from collections.abc import Iterable
from pathlib import Path

from centroidkv.files import write_atomic

_log = logging.getLogger("centroidkv")

__all__ = ["file_digest", "fingerprint", "folder_digest"]


def fingerprint(*parts: str) -> str:
    """Combine strings into one SHA-256, unambiguous about where each part ends."""
    hasher = hashlib.sha256()
    for part in parts:
        raw = part.encode("utf-8", "surrogatepass")
        hasher.update(len(raw).to_bytes(8, "little") + raw)
    return hasher.hexdigest()


def file_digest(path: Path, *, memory: Path | None = None) -> str:
    """Return the SHA-256 of a file's content; `memory` is the file that remembers digests."""
    stat = path.stat()
    key = f"{path.resolve()}|{stat.st_size}|{stat.st_mtime_ns}"
    known = _recall(memory)
    if key not in known:
        with path.open("rb") as file:
            known[key] = hashlib.file_digest(file, "sha256").hexdigest()
        if memory is not None:
            _remember(memory, known)
    return known[key]


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
    return known if isinstance(known, dict) else {}


def _remember(memory: Path, known: dict[str, str]) -> None:
    try:
        write_atomic(memory, json.dumps(known, indent=0).encode())
    except OSError as error:
        # A read-only home only costs hashing again: nothing for the user to do.
        _log.debug("digests are not remembered: %s", error)
