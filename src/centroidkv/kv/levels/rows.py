"""Rows of whole numbers, sorted by how far they reach, each sort with an entropy code of its own.

Owns the byte layout. What a row means, a channel or a token, is known to the caller.
"""

import numpy as np
from numpy.typing import NDArray

from centroidkv.kv.levels.packing import PACKINGS, compressed, decompressed
from centroidkv.kv.levels.port import Uncodable
from centroidkv.types import FloatArray

__all__ = ["Reader", "pack_numbers", "pack_rows", "unpack_numbers", "unpack_rows"]

_REACHES = np.array([p.most for p in PACKINGS])
# Up to here the mean of what was rounded to a number is kept, a better guess than the number.
_MOST_WITH_MEANS = 7


class Reader:
    """Takes a byte string apart, from the front."""

    def __init__(self, raw: memoryview) -> None:
        self._left = raw

    def take(self, size: int) -> bytes:
        """Return the next bytes.

        Raises:
            ValueError: There are fewer.
        """
        if not 0 <= size <= len(self._left):
            raise ValueError("a coded part is cut off")
        taken, self._left = self._left[:size], self._left[size:]
        return bytes(taken)

    def sized(self) -> bytes:
        """Return the next bytes, whose number stands in front of them."""
        return self.take(int.from_bytes(self.take(4), "little"))

    def end(self) -> None:
        """Raise `ValueError` if anything is left."""
        if len(self._left):
            raise ValueError("a coded part is too long")


def sized(raw: bytes) -> bytes:
    """Put a byte string behind its length."""
    return len(raw).to_bytes(4, "little") + raw


def pack_numbers(numbers: NDArray[np.int64]) -> bytes:
    """Pack a flat array of numbers of two bytes.

    Raises:
        Uncodable: One of them is too large.
    """
    if numbers.size and np.abs(numbers).max() > _REACHES[-1]:
        raise Uncodable("numbers too far apart")
    return sized(compressed(PACKINGS[-1].pack(numbers)))


def unpack_numbers(reader: Reader, size: int) -> FloatArray:
    """Return packed numbers, shape [size]."""
    raw = decompressed(reader.sized(), PACKINGS[-1].num_bytes(size))
    return PACKINGS[-1].unpack(raw, size, None)


def pack_rows(exact: FloatArray) -> bytes:
    """Round rows, shape [rows, length], and pack them.

    Raises:
        Uncodable: A number is too large, or is none.
    """
    if not np.isfinite(exact).all() or np.abs(exact).max(initial=0) > _REACHES[-1]:
        raise Uncodable("numbers too far apart")
    numbers = np.rint(exact).astype(np.int64)
    sorts = np.searchsorted(_REACHES, np.abs(numbers).max(1, initial=0)).astype(np.uint8)
    parts = [sized(compressed(sorts.tobytes()))]
    for sort, packing in enumerate(PACKINGS):
        mine = sorts == sort
        if not packing.most or not mine.any():
            continue
        if packing.most <= _MOST_WITH_MEANS:
            parts.append(_means(numbers[mine], exact[mine], packing.most).tobytes())
        parts.append(sized(compressed(packing.pack(numbers[mine].ravel()))))
    return b"".join(parts)


def unpack_rows(reader: Reader, num_rows: int, length: int) -> FloatArray:
    """Return packed rows, shape [rows, length].

    Raises:
        ValueError: The bytes are not those of such rows.
    """
    sorts = np.frombuffer(decompressed(reader.sized(), num_rows), np.uint8)
    if sorts.size and sorts.max() >= len(PACKINGS):
        raise ValueError("a row of an unknown sort")
    rows = np.zeros((num_rows, length), np.float32)
    for sort, packing in enumerate(PACKINGS):
        mine = np.flatnonzero(sorts == sort)
        if not packing.most or not mine.size:
            continue
        levels: FloatArray | None = None
        if packing.most <= _MOST_WITH_MEANS:
            levels = np.frombuffer(reader.take(2 * packing.base), np.float16).astype(np.float32)
        size = mine.size * length
        raw = decompressed(reader.sized(), packing.num_bytes(size))
        rows[mine] = packing.unpack(raw, size, levels).reshape(mine.size, length)
    return rows


def _means(numbers: NDArray[np.int64], exact: FloatArray, most: int) -> NDArray[np.float16]:
    """Return the mean of what was rounded to each number of [-most, most]."""
    flat = (numbers + most).ravel()
    counts = np.bincount(flat, minlength=2 * most + 1)
    sums = np.bincount(flat, exact.ravel().astype(np.float64), minlength=2 * most + 1)
    plain = np.arange(-most, most + 1, dtype=np.float64)
    return np.where(counts > 0, sums / np.maximum(counts, 1), plain).astype(np.float16)
