"""Keys or values of a block, rounded to steps of one size per layer, and back.

A channel's mean over the block's tokens is taken off first. Rows are then what is alike within:
a channel's numbers (of keys), or a token's (of values). Tokens that the others cannot be measured
by, the attention sinks, are kept apart in half precision.
"""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from centroidkv.kv.levels.port import Shape, Uncodable
from centroidkv.kv.levels.rows import Reader, pack_numbers, pack_rows, unpack_numbers, unpack_rows
from centroidkv.types import FloatArray

__all__ = ["Field"]


@dataclass(frozen=True, slots=True)
class Field:
    """How an array of shape [layers, kv_heads, tokens, dim] is coded.

    `step` is a part of each layer's typical spread about the channels' means.
    """

    step: float
    by_channel: bool

    def encode(self, field: FloatArray, apart: NDArray[np.intp]) -> bytes:
        """Code a field; the tokens `apart` are kept for themselves.

        Raises:
            Uncodable: It holds numbers too large, or none.
        """
        rest = np.delete(field, apart, axis=2)
        halves = field[:, :, apart].astype(np.float16)
        if not np.isfinite(rest).all() or not np.isfinite(halves).all():
            raise Uncodable("not a number of half precision")
        means = rest.mean(2, keepdims=True) if rest.shape[2] else np.zeros_like(field[:, :, :1])
        steps = self._steps(rest - means)
        means = np.rint(means / _each(steps))
        rows = self._rows(rest / _each(steps) - means)
        return b"".join((
            steps.tobytes(),
            halves.tobytes(),
            pack_numbers(_whole(means)),
            pack_rows(rows),
        ))  # fmt: skip

    def decode(self, raw: memoryview, shape: Shape, apart: NDArray[np.intp]) -> FloatArray:
        """Return a coded field of that shape.

        Raises:
            ValueError: The bytes are not those of such a field.
        """
        layers, heads, tokens, dim = shape
        reader = Reader(raw)
        steps = np.frombuffer(reader.take(4 * layers), np.float32)
        sink_shape = (layers, heads, len(apart), dim)
        halves = np.frombuffer(reader.take(2 * int(np.prod(sink_shape))), np.float16)
        means = unpack_numbers(reader, layers * heads * dim).reshape(layers, heads, 1, dim)
        rest = (layers, heads, tokens - len(apart), dim)
        found = self._from_rows(reader, rest)
        reader.end()
        found += means
        found *= _each(steps)
        if not len(apart):
            return found
        field = np.empty(shape, np.float32)
        field[:, :, np.delete(np.arange(tokens), apart)] = found
        field[:, :, apart] = halves.reshape(sink_shape)
        return field

    def _steps(self, spread: FloatArray) -> FloatArray:
        """Return each layer's step: a part of the root mean square of its median token."""
        squares = np.square(spread, dtype=np.float64).mean((1, 3))
        typical = np.median(squares, axis=1) if squares.shape[1] else squares.sum(1)
        steps = (self.step * np.sqrt(typical)).astype(np.float32)
        return np.where(steps > 0, steps, np.float32(1)).astype(np.float32)

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


def _each(steps: FloatArray) -> FloatArray:
    return steps[:, None, None, None]


def _whole(numbers: FloatArray) -> NDArray[np.int64]:
    if not np.isfinite(numbers).all() or np.abs(numbers).max(initial=0) > 1 << 30:
        raise Uncodable("means too far apart")
    return numbers.astype(np.int64).ravel()
