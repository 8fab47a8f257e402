"""Links in a folder that somebody else may have written: what we change is never behind one.

Knows no file of a store by name, only how deep to look. A link that is put there while a store is
open is out of its reach.
"""

import os
import shutil
import stat
from collections.abc import Sequence
from pathlib import Path

from centroidkv.errors import StoreError

__all__ = ["LOST_AND_FOUND", "delete", "has_links", "open_unlinked", "require_no_links"]

# What a file system keeps at its root, for root alone. Nothing of a store lies there.
LOST_AND_FOUND = "lost+found"


def require_no_links(folder: Path, *, apart_from: Sequence[str] = ()) -> None:
    """Refuse a folder with a link in it, or in a folder of it but those named.

    Deeper, files are only read, replaced and unlinked, which does no harm behind a link.

    Raises:
        StoreError: There is one, or it cannot be looked for.
    """
    try:
        for entry in _entries(folder):
            inner = []
            is_ours = entry.name not in (*apart_from, LOST_AND_FOUND)
            if is_ours and entry.is_dir(follow_symlinks=False):
                inner = _entries(Path(entry.path))
            for found in (entry, *inner):
                if found.is_symlink():
                    raise StoreError(
                        f"{found.path} is a link; a store must not have any, since what they "
                        f"lead to would be written to. Only {folder} itself may be one"
                    )
    except OSError as error:
        raise StoreError(f"cannot look for links in {folder}: {error}") from error


def _entries(folder: Path) -> list[os.DirEntry[str]]:
    with os.scandir(folder) as found:
        return list(found)


def has_links(folder: Path) -> bool:
    """Tell whether a folder is one, or holds anything that is neither a file nor a folder."""
    kinds = [path.lstat().st_mode for path in folder.rglob("*")]
    return folder.is_symlink() or not all(stat.S_ISREG(k) or stat.S_ISDIR(k) for k in kinds)


def open_unlinked(path: Path, flags: int) -> int:
    """Open a regular file and return its handle.

    Raises:
        OSError: It is a link or something else, or cannot be opened.
    """
    if not stat.S_ISREG(path.lstat().st_mode):  # Windows has no O_NOFOLLOW
        raise OSError(0, "not a regular file", str(path))
    kind = getattr(os, "O_NOFOLLOW", 0) | getattr(os, "O_BINARY", 0)
    return os.open(path, flags | kind)


def delete(path: Path) -> None:
    """Delete a file, a folder or a link, if it is there; what a link leads to stays."""
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)
