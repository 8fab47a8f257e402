"""KV without positions: keys as they were before RoPE, to be used at any other position.

Owns the way out of a prompt (`free_block`) and the way into an arena (`Placement`). A value never
depends on where its token stands; a key is turned back by its position's angle, and turned again
by that of its new one. Knows nothing of what is computed afresh.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from numpy.typing import NDArray

from centroidkv.models.arena import Arena
from centroidkv.models.layer_memory import write_bits
from centroidkv.placement import PlacedPassage
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

    def at(self, places: torch.Tensor) -> "Turn":
        """Return the angles of some of the positions."""
        return Turn(self.cos[places], self.sin[places])

    def back(self) -> "Turn":
        return Turn(self.cos, -self.sin)

    def apply(self, keys: torch.Tensor, *, out: torch.Tensor) -> torch.Tensor:
        """Turn keys, [kv_heads, tokens or 1, key_dim]; they pair the halves of a head.

        `out` has the tokens of the turn, and may be `keys` itself.
        """
        first, second = keys.chunk(2, -1)
        half = first.shape[-1]
        turned = (first * self.cos).addcmul_(second, self.sin, value=-1)
        out[..., half:].copy_((second * self.cos).addcmul_(first, self.sin))
        out[..., :half].copy_(turned)
        return out


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
    """Writes passages' KV into an arena at their places, one layer at a time.

    Args:
        arena: What is written to; its token 0 stands at position `origin`.
        origin: See `arena`.
        rotary: How the model's keys depend on their positions.
        passages: What is placed.

    Attributes:
        spans: Where in the arena each passage begins and ends.
    """

    def __init__(
        self, arena: Arena, origin: int, rotary: Rotary, passages: Sequence[PlacedPassage]
    ) -> None:
        self.arena = arena
        self.spans = [(p.start - origin, p.stop - origin) for p in passages]
        self._passages = passages
        self._blocks: list[KVBlock] = []
        self._frequencies = torch.from_numpy(rotary.frequencies).to(arena.shape.device)
        device = arena.shape.device
        self._positions = [
            torch.arange(p.start, p.stop, dtype=torch.float32, device=device) for p in passages
        ]
        self._turns: dict[int, list[Turn]] = {}

    def turns(self, layer: int) -> list[Turn]:
        """Return the turn of each passage's keys; computed once where layers share them."""
        number = layer if len(self._frequencies) > 1 else 0
        if number not in self._turns:
            turns = [Turn.of(p, self._frequencies[number]) for p in self._positions]
            self._turns = {number: turns}
        return self._turns[number]

    def place(self, layer: int) -> None:
        """Write the keys and values of one layer; the first call waits for the blocks.

        Raises:
            ValueError: A block has another number of tokens than its place.
        """
        self._blocks = self._blocks or [p.loaded() for p in self._passages]
        for block, span, turn in zip(self._blocks, self.spans, self.turns(layer), strict=True):
            keys = self.arena.keys[layer, 0, :, slice(*span)]
            values = self.arena.values[layer, 0, :, slice(*span)]
            write_bits(keys, block.keys[layer])
            write_bits(values, block.values[layer])
            turn.apply(keys.float(), out=keys)
