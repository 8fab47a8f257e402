"""Keys or values of a block, rounded to steps, and back.

A channel's mean over the block's tokens is taken off first. Rows are then what is alike within:
a channel's numbers (of keys), or a token's (of values). Tokens that the others cannot be measured
by, the attention sinks, are kept apart in half precision.
"""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from centroidkv.kv.levels.packing import compressed
from centroidkv.kv.levels.port import Shape
from centroidkv.kv.levels.rows import (
    Reader,
    Rows,
    pack_numbers,
    pack_rows,
    sized,
    unpack_numbers,
    unpack_rows,
)
from centroidkv.kv.levels.steps import Steps
from centroidkv.types import FloatArray

__all__ = ["KEYS", "VALUES", "Field", "OpenField"]


@dataclass(frozen=True, slots=True)
class Field:
    """How an array of shape [layers, kv_heads, tokens, dim] is laid out in bytes."""

    by_channel: bool

    def encode(self, field: FloatArray, apart: NDArray[np.intp], steps: Steps) -> bytes:
        """Code a field; the tokens `apart` are kept for themselves.

        Raises:
            Uncodable: It holds numbers too far apart.
        """
        rest = np.delete(field, apart, axis=2)
        halves = field[:, :, apart].astype(np.float16)
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

    def open(self, raw: memoryview, shape: Shape, apart: NDArray[np.intp]) -> "OpenField":
        """Read a coded field of that shape, without putting it together.

        Raises:
            ValueError: The bytes are not those of such a field.
        """
        layers, heads, tokens, dim = shape
        reader = Reader(raw)
        sizes = self._steps(reader, shape).sizes
        sinks = (layers, heads, len(apart), dim)
        halves = np.frombuffer(reader.take(2 * int(np.prod(sinks))), np.float16).reshape(sinks)
        if not np.isfinite(halves).all():
            raise ValueError("a token apart that is no number")
        means = unpack_numbers(reader, layers * heads * dim).reshape(layers, heads, 1, dim)
        tokens -= len(apart)
        num_rows, length = (dim, tokens) if self.by_channel else (tokens, dim)
        rows = unpack_rows(reader, layers * heads * num_rows, length)
        reader.end()
        rest = np.delete(np.arange(shape[2]), apart)
        return OpenField(self, shape, sizes, means, rows, (apart, halves, rest))

    def _steps(self, reader: Reader, shape: Shape) -> Steps:
        layers, heads, _, dim = shape
        own = (layers, heads, 1, dim) if self.by_channel else (layers, 1, 1, 1)
        unit = np.frombuffer(reader.take(4), np.float32)[0]
        halves = np.frombuffer(reader.unpacked(int(np.prod(own))), np.int8)
        return Steps.checked(unit, halves.reshape(own))

    def _rows(self, field: FloatArray) -> FloatArray:
        if self.by_channel:
            field = field.swapaxes(2, 3)
        return np.ascontiguousarray(field).reshape(-1, field.shape[3])


@dataclass(frozen=True, slots=True, eq=False)
class OpenField:
    """A coded field that is put together a few layers at a time.

    `kept` are the tokens apart, their numbers, and the other tokens.
    """

    field: Field
    shape: Shape
    sizes: FloatArray
    means: FloatArray
    rows: Rows
    kept: tuple[NDArray[np.intp], NDArray[np.float16], NDArray[np.intp]]

    def layers(self, start: int, stop: int) -> FloatArray:
        """Return the layers [start, stop), shape [stop - start, kv_heads, tokens, dim]."""
        apart, halves, others = self.kept
        _, heads, tokens, dim = self.shape
        rest = self._rows(start, stop, len(others))
        rest += self.means[start:stop]
        rest *= self.sizes[start:stop]
        if not len(apart):
            return rest
        found = np.empty((stop - start, heads, tokens, dim), np.float32)
        found[:, :, others] = rest
        found[:, :, apart] = halves[start:stop]
        return found

    def _rows(self, start: int, stop: int, tokens: int) -> FloatArray:
        _, heads, _, dim = self.shape
        if not self.field.by_channel:
            each = heads * tokens
            return self.rows.part(start * each, stop * each).reshape(-1, heads, tokens, dim)
        each = heads * dim
        rows = self.rows.part(start * each, stop * each)
        return np.ascontiguousarray(rows.reshape(-1, heads, dim, tokens).swapaxes(2, 3))


KEYS, VALUES = Field(by_channel=True), Field(by_channel=False)
