"""KV without positions: keys as they were before RoPE, to be used at any other position.

Owns the way out of a prompt (`free_block`) and the way into an arena (`Placement`). A value never
depends on where its token stands; a key is turned back by its position's angle, and turned again
by that of its new one. Knows nothing of what is computed afresh.
"""

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import torch
from numpy.typing import NDArray

from centroidkv.models.arena import Arena
from centroidkv.placement import PlacedPassage
from centroidkv.rotary import Rotary, from_float32, to_float32
from centroidkv.types import KVBlock

__all__ = ["PlacedPassage", "Placement", "free_block", "turned_block"]


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
        rotary: How the model's keys depend on their positions.
        passages: What is placed.
    """

    def __init__(
        self, arena: Arena, origin: int, rotary: Rotary, passages: Sequence[PlacedPassage]
    ) -> None:
        self._arena = arena
        self._origin = origin
        self._passages = passages
        device = arena.shape.device
        self._angles = [
            torch.arange(p.start, p.stop, dtype=torch.float32, device=device) for p in passages
        ]
        self._frequencies = torch.from_numpy(rotary.frequencies).to(device)

    def place(self, layer: int) -> None:
        """Write the keys and values of one layer."""
        of_layer = self._frequencies[layer if len(self._frequencies) > 1 else 0]
        for passage, positions in zip(self._passages, self._angles, strict=True):
            first, last = passage.start - self._origin, passage.stop - self._origin
            keys = self._arena.keys[layer, 0, :, first:last]
            angles = positions[:, None] * of_layer
            _turn(_numbers(passage.block, layer, keys), angles.cos(), angles.sin(), out=keys)
            values = torch.from_numpy(passage.block.values[layer]).view(keys.dtype)
            self._arena.values[layer, 0, :, first:last].copy_(values)


def _numbers(block: KVBlock, layer: int, like: torch.Tensor) -> torch.Tensor:
    """Return a layer's keys, [kv_heads, tokens, key_dim], in float32 where they are turned."""
    keys = torch.from_numpy(block.keys[layer]).view(like.dtype)
    return keys.to(like.device, torch.float32)


def _turn(keys: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor, *, out: torch.Tensor) -> None:
    """Turn keys by angles, [tokens, key_dim / 2], pairing the halves of a head as `Rotary` does."""
    first, second = keys.chunk(2, -1)
    half = first.shape[-1]
    out[..., :half].copy_((first * cos).addcmul_(second, sin, value=-1))
    out[..., half:].copy_((second * cos).addcmul_(first, sin))
