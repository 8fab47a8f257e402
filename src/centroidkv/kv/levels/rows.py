"""Rows of whole numbers, sorted by how far they reach, each sort with an entropy code of its own.

Owns the byte layout. What a row means, a channel or a token, is known to the caller.
"""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from centroidkv.kv.levels.packing import PACKINGS, Decompressor, Packing, compressed
from centroidkv.kv.levels.port import Uncodable
from centroidkv.types import FloatArray

__all__ = ["Reader", "Rows", "pack_numbers", "pack_rows", "sized", "unpack_numbers", "unpack_rows"]

_REACHES = np.array([p.most for p in PACKINGS])
# Up to here the mean of what was rounded to a number is kept, a better guess than the number.
_MOST_WITH_MEANS = 7


class Reader:
    """Takes a byte string apart, from the front."""

    def __init__(self, raw: memoryview) -> None:
        self._left = raw
        self._decompressor = Decompressor()

    def take(self, size: int) -> memoryview:
        """Return the next bytes.

        Raises:
            ValueError: There are fewer.
        """
        if not 0 <= size <= len(self._left):
            raise ValueError("a coded part is cut off")
        taken, self._left = self._left[:size], self._left[size:]
        return taken

    def unpacked(self, size: int) -> bytes:
        """Return the next compressed bytes, whose number stands in front of them.

        Raises:
            ValueError: They are damaged, or do not make `size` bytes.
        """
        frame = self.take(int.from_bytes(self.take(4), "little"))
        return self._decompressor.decompressed(frame, size)

    def end(self) -> None:
        """Raise `ValueError` if anything is left."""
        if len(self._left):
            raise ValueError("a coded part is too long")


def sized(raw: bytes) -> bytes:
    """Put a byte string behind its length."""
    return len(raw).to_bytes(4, "little") + raw


def pack_numbers(numbers: FloatArray) -> bytes:
    """Pack a flat array of whole numbers, two bytes each before they are compressed.

    Raises:
        Uncodable: One of them is too large.
    """
    _require_reachable(numbers)
    return sized(compressed(PACKINGS[-1].pack(numbers)))


def unpack_numbers(reader: Reader, size: int) -> FloatArray:
    """Return packed numbers, shape [size]."""
    raw = reader.unpacked(PACKINGS[-1].num_bytes(size))
    return PACKINGS[-1].unpack(raw, size, None)


def pack_rows(exact: FloatArray) -> bytes:
    """Round rows, shape [rows, length], and pack them.

    Raises:
        Uncodable: A number is too large, or is none.
    """
    _require_reachable(exact)
    numbers = np.rint(exact).astype(np.int16)
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


@dataclass(frozen=True, slots=True, eq=False)
class Rows:
    """Unpacked rows, sort by sort: row `i` stands at `places[i]` of `sorted_rows`."""

    sorted_rows: FloatArray
    places: NDArray[np.intp]

    def part(self, start: int, stop: int) -> FloatArray:
        """Return the rows [start, stop); a new array."""
        return self.sorted_rows.take(self.places[start:stop], axis=0, mode="clip")


def unpack_rows(reader: Reader, num_rows: int, length: int) -> Rows:
    """Return packed rows, shape [rows, length].

    Raises:
        ValueError: The bytes are not those of such rows.
    """
    sorts = np.frombuffer(reader.unpacked(num_rows), np.uint8)
    counts = np.bincount(sorts, minlength=len(PACKINGS))
    if len(counts) > len(PACKINGS):
        raise ValueError("a row of an unknown sort")
    found = np.empty((num_rows, length), np.float32)
    stop = 0
    for packing, count in zip(PACKINGS, counts.tolist(), strict=True):
        start, stop = stop, stop + count
        if not packing.most:
            found[start:stop] = 0
        elif count:
            found[start:stop].ravel()[:] = _unpacked(reader, packing, count * length)
    order = np.argsort(sorts, kind="stable")
    places = np.empty_like(order)
    places[order] = np.arange(num_rows)
    return Rows(found, places)


def _unpacked(reader: Reader, packing: Packing, size: int) -> FloatArray:
    levels: FloatArray | None = None
    if packing.most <= _MOST_WITH_MEANS:
        levels = np.frombuffer(reader.take(2 * packing.base), np.float16).astype(np.float32)
        if not np.isfinite(levels).all():
            raise ValueError("a mean that is no number")
    return packing.unpack(reader.unpacked(packing.num_bytes(size)), size, levels)


def _require_reachable(numbers: FloatArray) -> None:
    if not np.isfinite(numbers).all() or np.abs(numbers).max(initial=0) > _REACHES[-1]:
        raise Uncodable("numbers too far apart")


def _means(numbers: NDArray[np.int16], exact: FloatArray, most: int) -> NDArray[np.float16]:
    """Return the mean of what was rounded to each number of [-most, most]."""
    flat = (numbers + most).ravel().astype(np.intp)
    counts = np.bincount(flat, minlength=2 * most + 1)
    sums = np.bincount(flat, exact.ravel(), minlength=2 * most + 1)
    plain = np.arange(-most, most + 1, dtype=np.float64)
    return np.where(counts > 0, sums / np.maximum(counts, 1), plain).astype(np.float16)
