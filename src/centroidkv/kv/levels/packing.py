"""Small whole numbers in bytes: as many to a byte as fit, then an entropy coder over the bytes.

Several numbers share a byte as the digits of one number. That lets a Huffman code, which spends at
least one bit a symbol, come within one or two per cent of the entropy of numbers that are mostly
zero, and halves the symbols to decode.
"""

from dataclasses import dataclass
from typing import Any

import numpy as np
import zstandard
from numpy.typing import NDArray

from centroidkv.types import FloatArray

__all__ = ["PACKINGS", "Decompressor", "Packing", "compressed"]

# Noise has no repetitions worth finding: only the literals' Huffman code is of use.
_ZSTD = zstandard.ZstdCompressionParameters(
    window_log=17,
    strategy=zstandard.STRATEGY_FAST,
    hash_log=6,
    chain_log=6,
    search_log=1,
    min_match=7,
    target_length=0,
    write_content_size=True,
    write_checksum=False,
    write_dict_id=False,
)


def compressed(raw: bytes) -> bytes:
    """Return a zstd frame; equal bytes give equal frames."""
    return zstandard.ZstdCompressor(compression_params=_ZSTD).compress(raw)


class Decompressor:
    """Takes frames apart, one after the other; not for several threads at once."""

    def __init__(self) -> None:
        self._zstd = zstandard.ZstdDecompressor()

    def decompressed(self, frame: memoryview, size: int) -> bytes:
        """Return what was compressed, which must be `size` bytes.

        Raises:
            ValueError: The frame is damaged, or of another size.
        """
        try:
            # What the frame says of itself is what would be allocated.
            if zstandard.frame_content_size(frame) != size:
                raise ValueError("a compressed part is of another size than its block")
            return self._zstd.decompress(frame) if size else b""
        except zstandard.ZstdError as error:
            raise ValueError(f"a compressed part is damaged ({error})") from error


@dataclass(frozen=True, slots=True)
class Packing:
    """Numbers of [-most, most], `count` of them to a byte; with `count` 0 two bytes to a number."""

    most: int
    count: int

    @property
    def base(self) -> int:
        return 2 * self.most + 1

    def num_bytes(self, num_values: int) -> int:
        return -(-num_values // self.count) if self.count else 2 * num_values

    def pack(self, numbers: NDArray[Any]) -> bytes:
        """Pack a flat array of whole numbers."""
        if not self.count:
            bits = numbers.astype(np.int16).view(np.uint8)
            return bits.reshape(-1, 2).T.tobytes()  # low bytes first, then high ones
        digits = np.full((self.num_bytes(numbers.size), self.count), self.most, np.uint8)
        digits.ravel()[: numbers.size] = numbers + self.most
        packed = digits[:, 0]
        for place in range(1, self.count):
            packed = packed + digits[:, place] * np.uint8(self.base**place)
        return packed.tobytes()

    def unpack(self, raw: bytes, num_values: int, levels: FloatArray | None) -> FloatArray:
        """Return packed numbers, or what stands for each of them in `levels`, shape [base].

        Only numbers that have a byte for themselves may be asked for without `levels`.
        """
        packed = np.frombuffer(raw, np.uint8)
        if not self.count:
            numbers = np.ascontiguousarray(packed.reshape(2, -1).T).view(np.int16)
            return numbers.ravel().astype(np.float32)
        if levels is None:
            found: FloatArray = packed.astype(np.float32)
            found -= self.most
            return found
        table = levels[np.arange(256)[:, None] // self._places % self.base]
        # Indices of the machine's own width: from bytes, `take` is five times slower.
        found = table.take(packed.astype(np.intp), axis=0, mode="clip")
        return found.reshape(-1)[:num_values]

    @property
    def _places(self) -> NDArray[np.int64]:
        return self.base ** np.arange(self.count)


# Narrowest first; a row of numbers is packed by the first that holds its largest.
PACKINGS = (
    Packing(0, 1),
    Packing(1, 5),
    Packing(2, 3),
    Packing(3, 2),
    Packing(5, 2),
    Packing(7, 2),
    *(Packing(most, 1) for most in (10, 14, 20, 28, 40, 60, 90, 127)),
    Packing(32767, 0),
)
