"""KV without positions: keys as they were before RoPE, to be used at any other position.

Owns the way out of a prompt (`free_block`) and the way into an arena (`Placement`). A value never
depends on where its token stands; a key is turned back by its position's angle, and turned again
by that of its new one. Knows nothing of what is computed afresh.
"""

from collections.abc import Iterable
from dataclasses import dataclass, replace

import numpy as np
import torch
from numpy.typing import NDArray

from centroidkv.models.lending import SequenceKV, own_part
from centroidkv.placement import PlacedPassage, fitting
from centroidkv.rotary import Rotary, from_float32, to_float32
from centroidkv.types import KVBlock

__all__ = ["PlacedPassage", "Placement", "Turn", "free_block", "turned_block"]


@dataclass(frozen=True, slots=True, eq=False)
class Turn:
    """The angles of some positions: cosines and sines, [tokens, key_dim / 2]."""

    cos: torch.Tensor
    sin: torch.Tensor

    @classmethod
    def of(cls, positions: torch.Tensor, frequencies: torch.Tensor) -> "Turn":
        angles = positions[:, None] * frequencies
        return cls(angles.cos(), angles.sin())

    def apply(self, keys: torch.Tensor) -> torch.Tensor:
        """Turn keys in place, [kv_heads, tokens, key_dim]; they pair the halves of a head."""
        first, second = keys.chunk(2, -1)
        # One new array, of half the size: arrays made and thrown away cost more than the turning.
        cross = first * self.sin
        first.mul_(self.cos).addcmul_(second, self.sin, value=-1)
        second.mul_(self.cos).add_(cross)
        return keys


def free_block(block: KVBlock, rotary: Rotary, start: int) -> KVBlock:
    """Turn the keys of a block back whose first token stands at position `start`.

    Of a bfloat16 block the keys are rounded once more.
    """
    return turned_block(block, rotary, -(start + np.arange(block.num_tokens)))


def turned_block(block: KVBlock, rotary: Rotary, positions: NDArray[np.int64]) -> KVBlock:
    """Turn a block's keys by the angles of `positions`, [tokens]; the inverse of `free_block`."""
    keys = rotary.turn(to_float32(block.keys, block.dtype), positions)
    return replace(block, keys=from_float32(keys, block.dtype))


class Placement:
    """Writes passages' KV into an arena at their places, and turns their keys.

    Values never depend on positions, so both are written as they come, one passage after the
    other: none is held for longer than that, and what comes next may be loaded meanwhile. Keys are
    turned later, one layer at a time.

    Args:
        kv: What is written to, behind the tokens that it holds.
        rotary: How the model's keys depend on their positions.
        passages: Ascending, at absolute positions.
        end: Where the last of them ends at the latest.

    Attributes:
        spans: The absolute positions where each passage begins and ends.

    Raises:
        ValueError: The passages do not fit there, or each other.
    """

    def __init__(
        self, kv: SequenceKV, rotary: Rotary, passages: Iterable[PlacedPassage], end: int
    ) -> None:
        self._own, origin = own_part(kv)
        self.spans: list[tuple[int, int]] = []
        for passage in fitting(passages, kv.num_tokens, end):
            self._own.write(passage.start - origin, passage.block)
            self.spans.append((passage.start, passage.stop))
        # What stands between passages is turned with them, in one pass: it is computed, and
        # written over before it is read.
        start, stop = (self.spans[0][0], self.spans[-1][1]) if self.spans else (0, 0)
        self._rows = slice(start - origin, stop - origin)
        device = self._own.shape.device
        self._frequencies = torch.from_numpy(rotary.frequencies).to(device)
        self._positions = torch.arange(start, stop, dtype=torch.float32, device=device)
        self._turn: dict[int, Turn] = {}
        self._done: set[int] = set()  # layers

    def _turn_of(self, layer: int) -> Turn:
        """Return the turn of all keys; computed once where layers share it."""
        number = layer if len(self._frequencies) > 1 else 0
        if number not in self._turn:
            self._turn = {number: Turn.of(self._positions, self._frequencies[number])}
        return self._turn[number]

    def turn(self, layer: int) -> None:
        """Turn the keys of one layer, once: a second call does nothing."""
        if not self.spans or layer in self._done:
            return
        self._done.add(layer)
        own = self._own.keys[layer, 0, :, self._rows]
        exact = own.float()  # of float32 keys, they themselves
        self._turn_of(layer).apply(exact)
        if exact is not own:
            own.copy_(exact)
