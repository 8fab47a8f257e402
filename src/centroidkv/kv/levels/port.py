"""The port of a level, and what a coded block is. Knows no file and no level."""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Protocol

from numpy.typing import NDArray

from centroidkv.rotary import Rotary
from centroidkv.types import KVBlock

__all__ = ["MAX_TOKEN_VALUES", "VALUES_PER_BYTE", "CodedBlock", "Level", "Shape", "Uncodable"]

Shape = tuple[int, int, int, int]

# What bounds the memory that decoding may take, by what a file says of itself: at most so many
# numbers a token (the largest models have two million), and so many from one coded byte.
MAX_TOKEN_VALUES = 1 << 23
VALUES_PER_BYTE = 256


class Uncodable(ValueError):
    """A block that a level cannot hold: no numbers, or too far apart, or nearly nothing."""


@dataclass(frozen=True, slots=True)
class CodedBlock:
    """A block at a level: shapes and dtype of the `KVBlock`, and named arrays, in their order."""

    level: str
    dtype: str
    key_shape: Shape
    value_shape: Shape
    parts: Mapping[str, NDArray[Any]]

    @property
    def num_values(self) -> int:
        return math.prod(self.key_shape) + math.prod(self.value_shape)

    @property
    def num_bytes(self) -> int:
        return sum(int(part.nbytes) for part in self.parts.values())


class Level(Protocol):
    """One fineness at which blocks are kept. Equal blocks give equal bytes."""

    @property
    def name(self) -> str: ...

    def encode(self, block: KVBlock, rotary: Rotary | None) -> CodedBlock:
        """Code a block; `rotary`, where known, lets keys be coded before their positions.

        Raises:
            Uncodable: The level cannot hold this block.
        """
        ...

    def decode(self, coded: CodedBlock) -> KVBlock:
        """Return a block of the coded one's shapes and dtype.

        Raises:
            ValueError: The parts are not those of such a block.
            LookupError: A part is missing.
        """
        ...
