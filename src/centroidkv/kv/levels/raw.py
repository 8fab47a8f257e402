"""The level that keeps every bit."""

import numpy as np

from centroidkv.kv.levels.port import CodedBlock, Shape
from centroidkv.rotary import Rotary
from centroidkv.types import KVBlock

__all__ = ["RAW_LEVEL", "shape_of"]


class Raw:
    """Keys and values as the model holds them. See `Level` for the contract."""

    name = "raw"

    def encode(self, block: KVBlock, rotary: Rotary | None) -> CodedBlock:  # noqa: ARG002
        keys, values = np.ascontiguousarray(block.keys), np.ascontiguousarray(block.values)
        shapes = shape_of(keys.shape), shape_of(values.shape)
        return CodedBlock(self.name, block.dtype, *shapes, {"keys": keys, "values": values})

    def decode(self, coded: CodedBlock) -> KVBlock:
        return KVBlock(coded.parts["keys"], coded.parts["values"], coded.dtype)


def shape_of(shape: tuple[int, ...]) -> Shape:
    """Return a shape of four axes.

    Raises:
        ValueError: There are more or fewer.
    """
    layers, heads, tokens, dim = shape
    return layers, heads, tokens, dim


RAW_LEVEL = Raw()
