"""Files written whole or not at all, users' files read with a clear error, per-user folders."""

import contextlib
import errno
import os
import stat
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from centroidkv.bounds import MOST_TEXT_BYTES, plain_json
from centroidkv.errors import CacheForbidden, ConfigError
from centroidkv.links import delete

__all__ = [
    "UNFINISHED",
    "abandoned",
    "forbidden",
    "hand_over",
    "is_forbidden",
    "json_lines",
    "make_folder",
    "read_text",
    "set_aside",
    "user_cache_folder",
    "user_of",
    "write_atomic",
]


# What files are called until they are whole.
UNFINISHED = ".writing-"
# No write takes so long: an older one was broken off, whoever has its number now.
LONGEST_WRITE_S = 60.0
_BEGUN_S = time.time()
# How many damaged files of one name are kept.
MOST_ALIKE = 8
_BESIDE = ("", "-wal", "-shm")


def write_atomic(path: Path, *parts: bytes | memoryview) -> None:
    """Write a file so that readers see all of it or nothing: temporary, fsync, replace."""
    make_folder(path.parent)
    prefix = f"{UNFINISHED}{os.getpid()}-"
    handle, temporary = tempfile.mkstemp(dir=path.parent, prefix=prefix)
    try:
        with os.fdopen(handle, "wb") as file:
            for part in parts:
                file.write(part)
            file.flush()
            os.fsync(file.fileno())
        hand_over(Path(temporary))
        os.replace(temporary, path)
    except BaseException:
        Path(temporary).unlink(missing_ok=True)
        raise


def abandoned(folder: Path) -> list[Path]:
    """Return the unfinished files in a folder, and below it, that nobody writes any more.

    A killed process leaves such; they may hold anything. What another machine is just writing is
    taken for one of them, and that write fails.
    """
    # The lock of a store's first file is called alike.
    found = [p for p in folder.rglob(f"{UNFINISHED}*") if not p.name.endswith(".json")]
    return sorted(path for path in found if _is_abandoned(path))


def _is_abandoned(path: Path) -> bool:
    try:
        written_s = path.lstat().st_mtime
    except OSError:
        return False
    number = path.name.removeprefix(UNFINISHED).partition("-")[0]
    if number == str(os.getpid()):
        return written_s < _BEGUN_S
    return time.time() - written_s > LONGEST_WRITE_S or not _is_alive(number)


def _is_alive(number: str) -> bool:
    if not number.isdigit() or os.name != "posix":
        return False
    try:
        os.kill(int(number), 0)
    except PermissionError:
        return True
    except (OSError, OverflowError):
        return False
    return True


def set_aside(path: Path, quarantine: Path, *, most: int = MOST_ALIKE) -> None:
    """Move a damaged file or folder, and what SQLite keeps beside it, out of the way.

    Nothing happens where nothing is there. The second of a name gets `.2` behind it, and so on; of
    more than `most` the latest has the last place, so that what is damaged again and again does
    not fill the disk.

    Raises:
        OSError: It cannot be moved, or not be read, so that nobody knows whether it is damaged.
    """
    damaged = [s for s in _BESIDE if os.path.lexists(f"{path}{s}")]
    if not damaged:
        return
    if is_forbidden(path):
        raise PermissionError(errno.EACCES, f"belongs to {user_of(path)}", str(path))
    make_folder(quarantine)
    if quarantine.is_symlink():
        raise OSError(0, "a link, to which nothing is moved", str(quarantine))
    place = _place(quarantine / path.name, most)
    for suffix in _BESIDE:
        delete(Path(f"{place}{suffix}"))
    for suffix in damaged:
        os.replace(f"{path}{suffix}", f"{place}{suffix}")


def _place(first: Path, most: int) -> Path:
    """Return where nothing lies yet, or the last place."""
    places = [first, *(first.with_name(f"{first.name}.{n}") for n in range(2, most + 1))]
    free = (p for p in places if not any(os.path.lexists(f"{p}{s}") for s in _BESIDE))
    return next(free, places[-1])


def forbidden(path: Path) -> CacheForbidden:
    """Return the error that says whose a file is that this user may not read."""
    return CacheForbidden(path, user_of(path))


def is_forbidden(path: Path) -> bool:
    """Tell whether a file is there that this user may not read."""
    return path.exists() and not os.access(path, os.R_OK)


def hand_over(path: Path) -> None:
    """Give a new file or folder to whom the folder belongs that it lies in, if root made it.

    So a command run with `sudo` leaves nothing that the store's own user cannot read.
    """
    if not hasattr(os, "geteuid") or os.geteuid() != 0:
        return
    with contextlib.suppress(OSError):
        around = path.parent.stat()
        if around.st_uid != 0:
            os.chown(path, around.st_uid, around.st_gid, follow_symlinks=False)


def make_folder(folder: Path) -> None:
    """Make a folder and those above it, for their owner alone."""
    if not folder.exists():
        make_folder(folder.parent)
        folder.mkdir(mode=0o700, exist_ok=True)
        hand_over(folder)


def user_of(path: Path) -> str:
    """Name the user whose a file is, or the nearest folder above it that can be looked at."""
    try:
        found = path.lstat().st_uid
    except OSError:
        return user_of(path.parent) if path.parent != path else "somebody else"
    try:
        return path.owner()
    except (KeyError, OSError, NotImplementedError):
        return f"user {found}"


def user_cache_folder() -> Path:
    """Return the folder for files that can be made again; CENTROIDKV_CACHE overrides it.

    Raises:
        ConfigError: The user has no home, and something else stands where files would lie instead.
    """
    if given := os.environ.get("CENTROIDKV_CACHE"):
        return Path(given)
    if given := os.environ.get("XDG_CACHE_HOME"):
        return Path(given) / "centroidkv"
    try:
        return Path.home() / ".cache" / "centroidkv"
    except RuntimeError:  # neither HOME nor an entry for the user, as in some containers
        return _own_temporary_folder()


def _own_temporary_folder() -> Path:
    """Return a folder among the temporary files that nobody else can read or write."""
    user = os.geteuid() if hasattr(os, "geteuid") else ""
    folder = Path(tempfile.gettempdir()) / f"centroidkv-{user}"
    with contextlib.suppress(FileExistsError):
        folder.mkdir(mode=0o700)
    found = folder.lstat()  # whoever may write here may have made it first
    is_ours = user == "" or (found.st_uid == user and not found.st_mode & 0o077)
    if not stat.S_ISDIR(found.st_mode) or not is_ours:
        raise ConfigError(
            f"{folder} is not a folder of this user's alone, and there is no home folder; "
            "set CENTROIDKV_CACHE to a folder for files that can be made again"
        )
    return folder


def read_text(path: Path) -> str:
    """Read a UTF-8 file of a user's, with or without a byte order mark.

    Raises:
        ConfigError: It cannot be read, is not UTF-8, or larger than any such file.
    """
    try:
        with path.open("rb") as file:  # a pipe will do, too
            raw = file.read(MOST_TEXT_BYTES + 1)
        if len(raw) > MOST_TEXT_BYTES:
            raise ConfigError(f"{path} has more than {MOST_TEXT_BYTES >> 20} MiB; split it")
        return raw.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise ConfigError(
            f"{path} is not UTF-8 (byte {error.start}); save it as UTF-8 and try again"
        ) from error
    except OSError as error:
        raise ConfigError(f"cannot read {path}: {error.strerror}") from error


def json_lines(text: str, path: Path) -> Iterator[tuple[int, Any]]:
    """Yield the rows of a user's JSON Lines, each with the number of its line; blank ones are none.

    Raises:
        ConfigError: One is not JSON.
    """
    for number, line in enumerate(text.split("\n"), start=1):
        if not line.strip():
            continue
        try:
            row = plain_json(line)
        except ValueError as error:
            raise ConfigError(f"{path}, line {number}: not JSON ({error})") from error
        yield number, row
