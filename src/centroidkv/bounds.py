"""How much is taken from a file that somebody else may have written, before it is trusted.

Owns the bounds of reading: regular files alone, sizes before allocation, JSON of plain numbers,
npz archives of one spelling without compression. Knows no format of the package's own.
"""

import io
import json
import math
import os
import re
import stat
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

__all__ = ["MOST_TEXT_BYTES", "one_line", "plain_json", "read_arrays", "read_bounded"]

MOST_TEXT_BYTES = 1 << 30
_MOST_MEMBERS = 64
# The header of an array as numpy writes it; other spellings are refused, not interpreted.
_ARRAY = re.compile(
    rb"\x93NUMPY\x01\x00..\{'descr': '([<|][fiub][1248])', 'fortran_order': (True|False), "
    rb"'shape': \(((?:\d{1,12}(?:, |,)?)*)\), \} *\n",
    re.DOTALL,
)


def read_bounded(path: Path, most_bytes: int) -> bytes:
    """Read a regular file of at most so many bytes, whole; links to one are followed.

    Raises:
        OSError: It cannot be read, is no regular file (a pipe would be waited for), or is larger.
    """
    # Without O_NONBLOCK a pipe would hang in opening already.
    handle = os.open(path, os.O_RDONLY | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_BINARY", 0))
    with os.fdopen(handle, "rb") as file:
        found = os.fstat(file.fileno())
        if not stat.S_ISREG(found.st_mode):
            raise OSError(0, "not a regular file", str(path))
        if found.st_size > most_bytes:
            raise OSError(0, f"{found.st_size} bytes, more than the {most_bytes} there may be")
        raw = file.read(found.st_size + 1)
    if len(raw) > found.st_size:
        raise OSError(0, "it grows while it is read", str(path))
    return raw


def plain_json(raw: bytes | str) -> Any:
    """Parse JSON whose numbers are numbers: no NaN, no infinity, written out or overflowing.

    Raises:
        ValueError: It is something else, or nested too deep.
    """
    try:
        return json.loads(raw, parse_constant=_refused, parse_float=_finite)
    except RecursionError as error:
        raise ValueError("nested too deep") from error


def _refused(word: str) -> float:
    raise ValueError(f"{word} is not a number")


def _finite(text: str) -> float:
    number = float(text)
    if not math.isfinite(number):
        raise ValueError(f"{text:.20} is too large a number")
    return number


def read_arrays(payload: bytes) -> dict[str, NDArray[Any]]:
    """Return the arrays of an npz archive as `np.savez` writes it, read-only.

    Nothing is decompressed or evaluated, and what an array says of its size has to be what is
    there, so no more memory is taken than the archive has bytes.

    Raises:
        ValueError: It is something else.
    """
    try:
        with zipfile.ZipFile(io.BytesIO(payload)) as archive:
            members = archive.infolist()
            _require_plain(members, len(payload))
            return {m.filename.removesuffix(".npy"): _array(archive.read(m)) for m in members}
    except (zipfile.BadZipFile, EOFError, LookupError, OSError, RuntimeError, TypeError) as error:
        raise ValueError(f"not an archive of arrays ({error})") from error


def _require_plain(members: list[zipfile.ZipInfo], num_bytes: int) -> None:
    names = {m.filename for m in members}
    if len(members) > _MOST_MEMBERS or len(names) < len(members):
        raise ValueError("too many members, or one of them twice")
    for member in members:
        if member.compress_type != zipfile.ZIP_STORED or member.flag_bits & 1:
            raise ValueError(f"{member.filename!r:.80} is compressed or encrypted")
    if sum(m.file_size for m in members) > num_bytes:
        raise ValueError("members larger than the archive")


def _array(raw: bytes) -> NDArray[Any]:
    header = _ARRAY.match(raw)
    if header is None or header.end() != 10 + int.from_bytes(raw[8:10], "little"):
        raise ValueError("not an array of numbers")
    shape = tuple(int(n) for n in re.findall(rb"\d+", header[3]))
    dtype = np.dtype(header[1].decode("ascii").replace("b1", "?"))
    if math.prod(shape) * dtype.itemsize != len(raw) - header.end():
        raise ValueError("an array of another size than its bytes")
    numbers = np.frombuffer(raw, dtype, offset=header.end())
    return numbers.reshape(shape, order="F" if header[2] == b"True" else "C")


def one_line(text: str, most: int = 200) -> str:
    """Return text of a file as it may stand in a message: on one line, not longer than that."""
    line = " ".join(text.split())
    return line if len(line) <= most else f"{line[: most - 1]}…"
