"""Which plan version is in force: one small checksummed file per plan namespace.

Written whole, so that a switch happens at once or not at all. Knows numbers, not plans.
"""

import hashlib
import json
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from centroidkv.bounds import plain_json, read_bounded
from centroidkv.errors import CacheCorrupt
from centroidkv.files import forbidden, write_atomic

_FORMAT = "centroidkv-pointer-1"
_MOST_BYTES = 4096

__all__ = ["Pointer", "read_pointer", "write_pointer"]


@dataclass(frozen=True, slots=True)
class Pointer:
    """The versions of one plan namespace that serve.

    `previous` is what a rollback returns to; `trial` serves `share` of the questions beside the
    version in force; `last` is the highest number given out, so that none is used twice.
    """

    in_force: int
    previous: int | None = None
    trial: int | None = None
    share: float = 0.0
    last: int = 0

    def switched(self, version: int) -> "Pointer":
        """Return the pointer with a version in force; a trial ends."""
        previous = self.previous if version == self.in_force else self.in_force
        last = max(self.last, version)
        return Pointer(version, previous, last=last)

    def trying(self, version: int, share: float) -> "Pointer":
        """Return the pointer with a version beside the one in force."""
        return replace(self, trial=version, share=share, last=max(self.last, version))

    def without_trial(self) -> "Pointer":
        return replace(self, trial=None, share=0.0)

    @property
    def versions(self) -> set[int]:
        """The versions that must be kept."""
        return {v for v in (self.in_force, self.previous, self.trial) if v is not None}


def write_pointer(path: Path, pointer: Pointer) -> None:
    """Write a pointer file atomically."""
    body = json.dumps(asdict(pointer), sort_keys=True).encode()
    header = f"{_FORMAT} {hashlib.sha256(body).hexdigest()}\n".encode()
    write_atomic(path, header, body)


def read_pointer(path: Path) -> Pointer | None:
    """Read and verify a pointer file; None where there is none yet.

    Raises:
        CacheCorrupt: It is truncated, altered, of another format or cannot be read.
        CacheForbidden: It belongs to somebody else.
    """
    try:
        header, _, body = read_bounded(path, _MOST_BYTES).partition(b"\n")
    except FileNotFoundError:
        return None
    except PermissionError as error:
        raise forbidden(path) from error
    except OSError as error:
        raise CacheCorrupt(path, f"cannot be read ({error.strerror})") from error
    expected = f"{_FORMAT} {hashlib.sha256(body).hexdigest()}".encode()
    if header != expected:
        raise CacheCorrupt(path, "the checksum does not match")
    try:
        values: dict[str, Any] = plain_json(body)
        return _checked(Pointer(**values))
    except (ValueError, TypeError) as error:
        raise CacheCorrupt(path, f"not a pointer ({error})") from error


def _checked(pointer: Pointer) -> Pointer:
    """Return a pointer of numbers.

    Raises:
        ValueError: Something in it is no version, or the share no share.
    """
    needed, others = (pointer.in_force, pointer.last), (pointer.previous, pointer.trial)
    numbers = [*needed, *(v for v in others if v is not None)]
    if not all(type(v) is int and v >= 0 for v in numbers):
        raise ValueError("a version that is none")
    if type(pointer.share) not in (int, float) or not 0 <= pointer.share <= 1:
        raise ValueError("a share that is none")
    return pointer
