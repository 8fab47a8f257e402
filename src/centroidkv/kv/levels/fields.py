"""Keys or values of a block, rounded to steps, and back.

A channel's mean over the block's tokens is taken off first. Rows are then what is alike within:
a channel's numbers (of keys), or a token's (of values). Tokens that the others cannot be measured
by, the attention sinks, are kept apart in half precision.
"""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from centroidkv.kv.levels.packing import compressed, decompressed
from centroidkv.kv.levels.port import Shape, Uncodable
from centroidkv.kv.levels.rows import (
    Reader,
    pack_numbers,
    pack_rows,
    sized,
    unpack_numbers,
    unpack_rows,
)
from centroidkv.kv.levels.steps import Steps
from centroidkv.types import FloatArray

__all__ = ["KEYS", "VALUES", "Field"]


@dataclass(frozen=True, slots=True)
class Field:
    """How an array of shape [layers, kv_heads, tokens, dim] is laid out in bytes."""

    by_channel: bool

    def encode(self, field: FloatArray, apart: NDArray[np.intp], steps: Steps) -> bytes:
        """Code a field; the tokens `apart` are kept for themselves.

        Raises:
            Uncodable: It holds numbers too large, or none.
        """
        rest = np.delete(field, apart, axis=2)
        halves = field[:, :, apart].astype(np.float16)
        if not np.isfinite(halves).all():
            raise Uncodable("not a number of half precision")
        sizes = steps.sizes
        means = rest.mean(2, keepdims=True) if rest.shape[2] else np.zeros_like(field[:, :, :1])
        means = np.rint(means / sizes)
        return b"".join((
            steps.unit.tobytes(),
            sized(compressed(steps.halves.tobytes())),
            halves.tobytes(),
            pack_numbers(means.ravel()),
            pack_rows(self._rows(rest / sizes - means)),
        ))  # fmt: skip

    def decode(self, raw: memoryview, shape: Shape, apart: NDArray[np.intp]) -> FloatArray:
        """Return a coded field of that shape.

        Raises:
            ValueError: The bytes are not those of such a field.
        """
        layers, heads, tokens, dim = shape
        reader = Reader(raw)
        sizes = self._steps(reader, shape).sizes
        sinks = (layers, heads, len(apart), dim)
        halves = np.frombuffer(reader.take(2 * int(np.prod(sinks))), np.float16).reshape(sinks)
        means = unpack_numbers(reader, layers * heads * dim).reshape(layers, heads, 1, dim)
        rest = self._from_rows(reader, (layers, heads, tokens - len(apart), dim))
        reader.end()
        rest += means
        rest *= sizes
        if not len(apart):
            return rest
        field = np.empty(shape, np.float32)
        field[:, :, np.delete(np.arange(tokens), apart)] = rest
        field[:, :, apart] = halves
        return field

    def _steps(self, reader: Reader, shape: Shape) -> Steps:
        layers, heads, _, dim = shape
        own = (layers, heads, 1, dim) if self.by_channel else (layers, 1, 1, 1)
        unit = np.frombuffer(reader.take(4), np.float32)[0]
        halves = np.frombuffer(decompressed(reader.sized(), int(np.prod(own))), np.int8)
        return Steps(unit, halves.reshape(own))

    def _rows(self, field: FloatArray) -> FloatArray:
        if self.by_channel:
            field = field.swapaxes(2, 3)
        return np.ascontiguousarray(field).reshape(-1, field.shape[3])

    def _from_rows(self, reader: Reader, shape: Shape) -> FloatArray:
        layers, heads, tokens, dim = shape
        if not self.by_channel:
            return unpack_rows(reader, layers * heads * tokens, dim).reshape(shape)
        rows = unpack_rows(reader, layers * heads * dim, tokens)
        return np.ascontiguousarray(rows.reshape(layers, heads, dim, tokens).swapaxes(2, 3))


KEYS, VALUES = Field(by_channel=True), Field(by_channel=False)
