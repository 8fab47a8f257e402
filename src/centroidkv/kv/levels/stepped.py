"""A lossy level: keys and values rounded to uniform steps, keys before their positions.

Uniform steps with an entropy code behind them need fewer bits for the same error than a grid
between the smallest and the largest number (entropy-coded scalar quantisation): what lies far out
costs bits where it occurs, and does not widen the steps of everything else. Keys are turned back
(RoPE) relative to the block's first token, so that a block needs no start position: within a
block only differences of positions matter to a channel's statistics.
"""

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from centroidkv.kv.levels.fields import KEYS, VALUES, OpenField
from centroidkv.kv.levels.port import MAX_TOKEN_VALUES, VALUES_PER_BYTE, CodedBlock, Uncodable
from centroidkv.kv.levels.raw import shape_of
from centroidkv.kv.levels.steps import key_steps, value_steps
from centroidkv.rotary import Rotary, from_float32, to_float32, turned
from centroidkv.types import FloatArray, KVBlock

__all__ = ["SteppedLevel"]

# A sink: a token whose values are this much smaller than the others', in the middle layer. Much
# of the attention rests on it, so a step that suits the others would be far too coarse for it.
_SINK_PART = 0.45
_MOST_SINKS = 4
_LAYERS_AT_ONCE = 4
_STORAGE: dict[str, Any] = {
    "float32": np.float32,
    "float16": np.float16,
    "bfloat16": np.uint16,
    "float64": np.float64,
}
_MOST_SIZE = 3e4  # of a number that half precision holds however it is turned


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
        if not _are_codable(keys) or not _are_codable(values):
            raise Uncodable("no numbers, or numbers that half precision does not hold")
        if rotary is not None:
            keys = rotary.turn(np.ascontiguousarray(keys), -np.arange(block.num_tokens))
        apart = _sinks(values)
        paired = rotary is not None
        parts: dict[str, NDArray[np.generic]] = {
            "apart": apart.astype(np.uint32),
            "keys": _bytes(KEYS.encode(keys, apart, key_steps(keys, self.key_step, paired=paired))),
            "values": _bytes(VALUES.encode(values, apart, value_steps(values, self.value_step))),
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
            raise ValueError("the shapes do not fit its bytes")
        apart = _flat(coded, "apart", np.uint32).astype(np.intp)
        if apart.size > _MOST_SINKS or apart.max(initial=0) >= coded.key_shape[2]:
            raise ValueError("a token apart that is not there")
        keys = KEYS.open(_flat(coded, "keys", np.uint8).data, coded.key_shape, apart)
        values = VALUES.open(_flat(coded, "values", np.uint8).data, coded.value_shape, apart)
        return KVBlock(
            _whole(keys, coded.dtype, _angles(coded)), _whole(values, coded.dtype), coded.dtype
        )


def _whole(
    field: OpenField, dtype: str, angles: tuple[FloatArray, FloatArray] | None = None
) -> NDArray[Any]:
    """Put a field together as a block carries it, in parts that stay in the processor's cache."""
    num_layers = field.shape[0]
    whole = np.empty(field.shape, _STORAGE[dtype])
    for start in range(0, num_layers, _LAYERS_AT_ONCE):
        stop = min(start + _LAYERS_AT_ONCE, num_layers)
        found = field.layers(start, stop)
        if angles is not None:
            cos, sin = (a[start:stop] if len(a) > 1 else a for a in angles)
            # Straight to where it belongs, if nothing is left to be done with it.
            out = whole[start:stop] if dtype == "float32" else None
            found = turned(found, cos, sin, out)
            if out is not None:
                continue
        whole[start:stop] = from_float32(found, dtype)
    return whole


def _sinks(values: FloatArray) -> NDArray[np.intp]:
    """Return the tokens whose values are far smaller than the others', in half of the layers."""
    sizes = np.sqrt(np.einsum("lhtd,lhtd->lt", values, values))
    typical = np.median(sizes, axis=1, keepdims=True)
    part = np.median(sizes / np.where(typical > 0, typical, 1), axis=0)
    found = np.flatnonzero(part < _SINK_PART)
    return found[np.argsort(part[found], kind="stable")[:_MOST_SINKS]]


def _are_codable(field: FloatArray) -> bool:
    return field.size > 0 and bool(np.abs(field).max() < _MOST_SIZE)


def _bytes(raw: bytes) -> NDArray[np.uint8]:
    return np.frombuffer(raw, np.uint8)


def _is_bounded(coded: CodedBlock) -> bool:
    """Tell whether decoding takes no more memory than the bytes that are there warrant."""
    tokens = coded.key_shape[2]
    most = min(VALUES_PER_BYTE * coded.num_bytes, MAX_TOKEN_VALUES * tokens)
    return coded.value_shape[2] == tokens and 0 < coded.num_values <= most


def _flat(coded: CodedBlock, name: str, dtype: type[np.generic]) -> NDArray[Any]:
    part = coded.parts[name]
    if part.ndim != 1 or part.dtype != dtype:
        raise ValueError(f"{name} of an odd shape or type")
    return part


def _angles(coded: CodedBlock) -> tuple[FloatArray, FloatArray] | None:
    """Return what keys are turned to their positions by, None if they were never turned back."""
    if "frequencies" not in coded.parts:
        return None
    frequencies: FloatArray = coded.parts["frequencies"]
    layers, _, tokens, dim = coded.key_shape
    if frequencies.dtype != np.float32 or frequencies.shape not in (
        (layers, dim // 2),
        (1, dim // 2),
    ):
        raise ValueError("frequencies of another shape than the keys")
    return Rotary(frequencies).angles(np.arange(tokens))
