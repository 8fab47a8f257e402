"""Rotary positions (RoPE, Su et al., 2021): keys turned by the angle of their position, and back.

A key at position p is the key itself with each pair of its numbers turned by p times the pair's
frequency. Turned back, it says nothing of where it stood: such keys are alike along a channel,
and can be used at another position. The pairs are those of Llama-type models: the first half of a
head with the second half ("half-split"), not neighbours.
"""

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from centroidkv.types import FloatArray

__all__ = ["Rotary", "from_float32", "to_float32", "turned"]


@dataclass(frozen=True, slots=True, eq=False)
class Rotary:
    """How a model's keys depend on their position.

    `frequencies` are radians a token, float32, shape [layers, key_dim / 2]; layers may share them,
    and then the shape is [1, key_dim / 2].
    """

    frequencies: FloatArray

    def turn(self, keys: FloatArray, positions: NDArray[np.integer[Any]]) -> FloatArray:
        """Turn keys by the angles of `positions`; a new array.

        Args:
            keys: Shape [layers, kv_heads, tokens, key_dim], float32.
            positions: Shape [tokens]. Negative ones turn back.
        """
        return turned(keys, *self.angles(positions))

    def angles(self, positions: NDArray[np.integer[Any]]) -> tuple[FloatArray, FloatArray]:
        """Return what `turned` multiplies by, shapes [layers or 1, 1, tokens, key_dim].

        The cosines of a pair's angle stand for both of its numbers; so do the sines, that of the
        first number with the sign turned.
        """
        # The same products in float32 as in the models, so that the angles are theirs to the bit.
        angles = positions.astype(np.float32)[None, :, None] * self.frequencies[:, None, :]
        cos, sin = np.cos(angles)[:, None], np.sin(angles)[:, None]
        return np.concatenate([cos, cos], -1), np.concatenate([-sin, sin], -1)


def turned(
    keys: FloatArray, cos: FloatArray, sin: FloatArray, out: FloatArray | None = None
) -> FloatArray:
    """Return keys turned by angles, as `Rotary.angles` returns them, in `out` or a new array."""
    half = keys.shape[-1] // 2
    found = np.multiply(keys, cos, out=out)
    # Whole rows, with the halves changed over: half as many, twice as long loops as half by half.
    others = np.concatenate([keys[..., half:], keys[..., :half]], axis=-1)
    others *= sin
    found += others
    return found


def to_float32(array: NDArray[Any], dtype: str) -> FloatArray:
    """Return the numbers of a `KVBlock`'s array; bfloat16 comes as its bit pattern in uint16."""
    if dtype == "bfloat16":
        return (array.astype(np.uint32) << 16).view(np.float32)
    return array.astype(np.float32, copy=False)


def from_float32(array: FloatArray, dtype: str) -> NDArray[Any]:
    """Return numbers as a `KVBlock` of that dtype carries them, rounded to the nearest."""
    if dtype == "bfloat16":
        bits = np.ascontiguousarray(array, np.float32).view(np.uint32)
        nearest = bits + 0x7FFF + ((bits >> 16) & 1)  # ties to even, as hardware does
        return (nearest >> 16).astype(np.uint16)
    return array.astype(dtype, copy=False)
