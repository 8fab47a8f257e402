"""A lossy level: keys and values rounded to uniform steps, keys before their positions.

Uniform steps with an entropy code behind them need fewer bits for the same error than a grid
between the smallest and the largest number (entropy-coded scalar quantisation): what lies far out
costs bits where it occurs, and does not widen the steps of everything else. Keys are turned back
(RoPE) relative to the block's first token, so that a block needs no start position: within a
block only differences of positions matter to a channel's statistics.
"""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from centroidkv.kv.levels.fields import Field
from centroidkv.kv.levels.port import MAX_TOKEN_VALUES, VALUES_PER_BYTE, CodedBlock, Uncodable
from centroidkv.kv.levels.raw import shape_of
from centroidkv.rotary import Rotary, from_float32, to_float32
from centroidkv.types import FloatArray, KVBlock

__all__ = ["SteppedLevel"]

# A sink: a token whose values are this much smaller than the others', in the middle layer. Much
# of the attention rests on it, so a step that suits the others would be far too coarse for it.
_SINK_PART = 0.45
_MOST_SINKS = 4


@dataclass(frozen=True, slots=True)
class SteppedLevel:
    """A level of uniform steps. See `Level` for the contract.

    Args:
        name: What files and settings call it.
        key_step: As a part of a layer's typical key.
        value_step: As a part of a layer's typical value.
    """

    name: str
    key_step: float
    value_step: float

    def encode(self, block: KVBlock, rotary: Rotary | None) -> CodedBlock:
        keys = to_float32(block.keys, block.dtype)
        values = to_float32(block.values, block.dtype)
        if not np.isfinite(keys).all() or not np.isfinite(values).all():
            raise Uncodable("not a number")
        if rotary is not None:
            keys = rotary.turn(np.ascontiguousarray(keys), -np.arange(block.num_tokens))
        apart = _sinks(values)
        parts: dict[str, NDArray[np.generic]] = {
            "apart": apart.astype(np.uint32),
            "keys": _bytes(Field(self.key_step, by_channel=True).encode(keys, apart)),
            "values": _bytes(Field(self.value_step, by_channel=False).encode(values, apart)),
        }
        if rotary is not None:
            parts["frequencies"] = np.ascontiguousarray(rotary.frequencies, np.float32)
        shapes = shape_of(block.keys.shape), shape_of(block.values.shape)
        coded = CodedBlock(self.name, block.dtype, *shapes, parts)
        if not _is_bounded(coded):
            raise Uncodable("nearly nothing to code")
        return coded

    def decode(self, coded: CodedBlock) -> KVBlock:
        if not _is_bounded(coded):
            raise ValueError("the shapes are larger than its bytes can fill")
        apart = coded.parts["apart"].astype(np.intp)
        if apart.size > _MOST_SINKS or apart.max(initial=0) >= max(1, coded.key_shape[2]):
            raise ValueError("a token apart that is not there")
        keys = Field(self.key_step, by_channel=True).decode(
            coded.parts["keys"].data, coded.key_shape, apart
        )
        values = Field(self.value_step, by_channel=False).decode(
            coded.parts["values"].data, coded.value_shape, apart
        )
        if "frequencies" in coded.parts:
            keys = _rotary(coded).turn(keys, np.arange(coded.key_shape[2]))
        return KVBlock(
            from_float32(keys, coded.dtype), from_float32(values, coded.dtype), coded.dtype
        )


def _sinks(values: FloatArray) -> NDArray[np.intp]:
    """Return the tokens whose values are far smaller than the others', in half of the layers."""
    sizes = np.sqrt(np.square(values, dtype=np.float64).mean((1, 3)))
    typical = np.median(sizes, axis=1, keepdims=True)
    part = np.median(sizes / np.where(typical > 0, typical, 1), axis=0)
    found = np.flatnonzero(part < _SINK_PART)
    return found[np.argsort(part[found], kind="stable")[:_MOST_SINKS]]


def _bytes(raw: bytes) -> NDArray[np.uint8]:
    return np.frombuffer(raw, np.uint8)


def _is_bounded(coded: CodedBlock) -> bool:
    """Tell whether decoding takes no more memory than the bytes that are there warrant."""
    most = min(VALUES_PER_BYTE * coded.num_bytes, MAX_TOKEN_VALUES * coded.key_shape[2])
    return coded.num_values <= most


def _rotary(coded: CodedBlock) -> Rotary:
    frequencies = coded.parts["frequencies"]
    layers, _, _, dim = coded.key_shape
    if frequencies.shape not in ((layers, dim // 2), (1, dim // 2)):
        raise ValueError("frequencies of another shape than the keys")
    return Rotary(frequencies)
