"""How coarse each part of a block may be: larger steps where an error matters less.

Both rules are read off the block alone, so that they need no calibration, and were found by
measuring which errors change the next token's distribution (the Fisher information of keys and
values under the model's own answers).

Keys: what an error does is up to the query it meets. Pairs of channels with large keys meet large
queries, above all the slowly turning ones, which carry meaning; their steps are smaller, not
larger as on a grid between smallest and largest. Values: a layer's errors are seen by all layers
above it, so deeper ones may be coarser (as in CacheGen, Liu et al., 2024), and layers of large
values too, but by less than in proportion.
"""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from centroidkv.kv.levels.port import Uncodable
from centroidkv.types import FloatArray

__all__ = ["Steps", "key_steps", "value_steps"]

_FINER = 0.75  # power of a channel pair's size by which its step is smaller
_FLATTER = 0.5  # power of a layer's size by which the step of its values is larger
_DEEPER = 1.0  # octaves between the steps of the first layer's values and those of the last
_PER_OCTAVE = 2
_MOST_HALVES = 10


@dataclass(frozen=True, slots=True)
class Steps:
    """Step sizes, `unit` times 2 to the power of half of `halves`, which broadcast to a field."""

    unit: np.float32
    halves: NDArray[np.int8]

    @classmethod
    def checked(cls, unit: np.float32, halves: NDArray[np.int8]) -> "Steps":
        """Return steps as a file names them.

        Raises:
            ValueError: They are none that this module gives.
        """
        if not 1e-30 < unit < 1e30 or np.abs(halves.astype(np.int16)).max(initial=0) > _MOST_HALVES:
            raise ValueError("steps that cannot be")
        return cls(unit, halves)

    @property
    def sizes(self) -> FloatArray:
        octaves = self.halves.astype(np.float32) / _PER_OCTAVE
        return np.exp2(octaves, dtype=np.float32) * self.unit


def key_steps(keys: FloatArray, step: float, *, paired: bool) -> Steps:
    """Return the steps of keys, shape [layers, kv_heads, 1, key_dim].

    Args:
        keys: Shape [layers, kv_heads, tokens, key_dim].
        step: As a part of the typical key.
        paired: Whether channels half a head apart are turned together, and get one step.
    """
    tokens = keys.shape[2]
    power = np.einsum("lhtd,lhtd->lhd", keys, keys)[:, :, None].astype(np.float64) / tokens
    if paired:
        first, second = np.split(power, 2, axis=3)
        power = np.concatenate([first + second] * 2, axis=3) / 2
    typical = _typical(power)
    return _rounded(step * typical, -_FINER / 2 * _octaves(power, typical))


def value_steps(values: FloatArray, step: float) -> Steps:
    """Return the steps of values, [layers, 1, 1, 1]; `step` is a part of the typical value."""
    layers, heads, _, dim = values.shape
    each = np.einsum("lhtd,lhtd->lt", values, values).astype(np.float64) / (heads * dim)
    power = np.median(each, axis=1)[:, None, None, None]
    typical = _typical(power)
    depth = np.linspace(-0.5, 0.5, layers)[:, None, None, None] if layers > 1 else 0.0
    return _rounded(step * typical, _FLATTER / 2 * _octaves(power, typical) + _DEEPER * depth)


def _typical(power: NDArray[np.float64]) -> float:
    """Return the geometric mean of the sizes that are not nothing."""
    some = power[power > 0]
    return float(np.exp(np.log(some).mean() / 2)) if some.size else 1.0


def _octaves(power: NDArray[np.float64], typical: float) -> NDArray[np.float64]:
    """Return by how many octaves of power something is above the typical."""
    tiny = typical**2 * 2.0**-40
    return np.log2(np.maximum(power, tiny) / typical**2)


def _rounded(unit: float, octaves: NDArray[np.float64]) -> Steps:
    halves = np.clip(np.rint(octaves * _PER_OCTAVE), -_MOST_HALVES, _MOST_HALVES).astype(np.int8)
    if not 1e-30 < unit < 1e30:
        raise Uncodable("numbers too large or too small")
    return Steps(np.float32(unit), halves)
