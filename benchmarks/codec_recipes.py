"""Ways to make a prompt's KV smaller, as one function each: block in, block and bytes out.

Owns the product's levels as stored, and what they are compared with. Knows no prompts and no
model.
"""

from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import numpy as np
import torch

from centroidkv.kv.blocks import BLOCK_TOKENS
from centroidkv.kv.codec import LEVELS, BlockCoder, block_bytes, parse_block
from centroidkv.kv.levels.rows import pack_rows
from centroidkv.kv.levels.steps import key_steps, value_steps
from centroidkv.rotary import Rotary
from centroidkv.types import FloatArray, KVBlock

Recipe = Callable[[KVBlock], tuple[KVBlock, int]]
IDS = ("a" * 64, "b" * 64, "c" * 64)
DEFAULT = "q5k4v"
GROUP = 10  # tokens, as in CacheGen's paper


def recipes(rotary: Rotary) -> dict[str, Recipe]:
    """Name every way to be measured; those of libraries that are absent are left out."""
    ways: dict[str, Recipe] = {name: stored(BlockCoder(name, rotary)) for name in LEVELS[1:]}
    ways["cachegen as published"] = cachegen
    ways[f"{DEFAULT}, keys not turned back"] = stored(BlockCoder(DEFAULT))
    ways[f"{DEFAULT}, turned back to position 0"] = absolute(rotary)
    try:
        import optimum.quanto  # noqa: F401
    except ImportError as error:
        print(f"transformers' quantised cache is left out: {error}")
        return ways
    return ways | {f"quanto {bits} bits": quanto(bits) for bits in (4, 2)}


def stored(coder: BlockCoder) -> Recipe:
    """Return what is read back from block files, all bytes of them counted."""

    def way(block: KVBlock) -> tuple[KVBlock, int]:
        parts, size = [], 0
        for start in range(0, block.num_tokens, BLOCK_TOKENS):
            part = block.part(start, start + BLOCK_TOKENS)
            raw = block_bytes(part, ids=IDS, token_ids=range(part.num_tokens), coder=coder)
            parts.append(parse_block(raw, "a block").block)
            size += len(raw)
        return joined(parts), size

    return way


def absolute(rotary: Rotary) -> Recipe:
    """Turn keys back by their whole position before they are coded, not by that in their block."""

    def way(block: KVBlock) -> tuple[KVBlock, int]:
        positions = np.arange(block.num_tokens)
        first = positions - positions % BLOCK_TOKENS
        turned = KVBlock(rotary.turn(block.keys, -first), block.values, block.dtype)
        found, size = stored(BlockCoder(DEFAULT, rotary))(turned)
        return KVBlock(rotary.turn(found.keys, first), found.values, found.dtype), size

    return way


def cachegen(block: KVBlock) -> tuple[KVBlock, int]:
    """Quantise as CacheGen's published code does, and code that as we code our own numbers.

    Per layer and token by the largest number: 32 bins for the keys of the first 10 layers and the
    values of the first 2, else 16. The largest numbers are counted with two bytes each.
    """
    found, size = [], 0
    for field, finer in ((block.keys, 10), (block.values, 2)):
        bins = np.where(np.arange(len(field)) < finer, 32, 16)[:, None, None, None]
        largest = np.abs(field).max((1, 3), keepdims=True) / (bins // 2 - 1)
        numbers = np.rint(field / largest).astype(np.float32)
        found.append((numbers * largest).astype(np.float32))
        for start in range(0, block.num_tokens, BLOCK_TOKENS):
            size += len(pack_rows(_by_channel(numbers[:, :, start : start + BLOCK_TOKENS])))
        size += 2 * largest.size
    return KVBlock(found[0], found[1], block.dtype), size


def quanto(bits: int) -> Recipe:
    """Quantise as transformers' own quantised cache does, groups of 64, without its residual.

    Scales and shifts are counted with two bytes each.
    """

    def way(block: KVBlock) -> tuple[KVBlock, int]:
        from optimum.quanto.library.extensions.cpp import ext
        from transformers.cache_utils import QuantoQuantizedLayer

        ext._lib = SimpleNamespace(unpack=_unpacked)  # its own would first be compiled, from C++
        found: list[list[Any]] = [[], []]
        for keys, values in zip(block.keys, block.values, strict=True):
            layer = QuantoQuantizedLayer(nbits=bits, q_group_size=64)
            layer.update(torch.from_numpy(keys.copy())[None], torch.from_numpy(values.copy())[None])
            found[0].append(layer._dequantize(layer._quantized_keys)[0].numpy())
            found[1].append(layer._dequantize(layer._quantized_values)[0].numpy())
        num_values = block.keys.size + block.values.size
        size = num_values * bits // 8 + num_values // 64 * 4
        return KVBlock(np.stack(found[0]), np.stack(found[1]), block.dtype), size

    return way


def _unpacked(packed: torch.Tensor, bits: int) -> torch.Tensor:
    """Return numbers of a few bits from bytes: the lowest bits of all bytes, then the next."""
    return torch.cat([packed >> shift & (1 << bits) - 1 for shift in range(0, 8, bits)])


def bytes_with_deltas(block: KVBlock, rotary: Rotary, step: float) -> tuple[int, int]:
    """Return the bytes of a block's numbers, (about the channels' means, about anchor tokens).

    The same steps and so the same errors; anchors are the first of every ten tokens.
    """
    keys = rotary.turn(np.ascontiguousarray(block.keys), -np.arange(block.num_tokens))
    plain = deltas = 0
    for field, steps in (
        (keys, key_steps(keys, step, paired=True)),
        (block.values, value_steps(block.values, step)),
    ):
        numbers = np.rint(field / steps.sizes)
        means = np.rint(numbers.mean(2, keepdims=True))
        plain += len(pack_rows(_by_channel(numbers - means)))
        for first in range(0, block.num_tokens, GROUP):
            numbers[:, :, first + 1 : first + GROUP] -= numbers[:, :, first : first + 1]
            numbers[:, :, first : first + 1] -= means
        deltas += len(pack_rows(_by_channel(numbers)))
    return plain, deltas


def joined(parts: list[KVBlock]) -> KVBlock:
    keys = np.concatenate([p.keys for p in parts], axis=2)
    return KVBlock(keys, np.concatenate([p.values for p in parts], axis=2), parts[0].dtype)


def _by_channel(numbers: FloatArray) -> FloatArray:
    return np.ascontiguousarray(numbers.swapaxes(2, 3)).reshape(-1, numbers.shape[2])
