"""Which angles a transformers model turns its keys by.

Read off the model, then tried: of a text that repeats one token, every layer sees the same at
every position, so that its keys, turned back, must all be the same. That needs no knowledge of
the architecture, and notices wrong pairs, partial turning, other kinds of positions and
frequencies that are not those in use.
"""

from typing import Any

import numpy as np
import torch
from transformers import PreTrainedModel

from centroidkv.models.arena import Arena, KVShape, input_device
from centroidkv.rotary import Rotary, to_float32

_TOKENS = 12
# Largest difference, as a part of the largest key.
_MOST_FLOAT32, _MOST_OTHER = 1e-3, 0.05

__all__ = ["rotary_of"]


def rotary_of(model: PreTrainedModel, shape: KVShape) -> Rotary | None:
    """Return how a model's keys depend on their position, None if that is not understood.

    Costs one forward of twelve tokens.
    """
    if shape.layers:  # windows, several shapes or devices
        return None
    body: Any = model
    embedding = getattr(body.get_decoder(), "rotary_emb", None)
    frequencies = getattr(embedding, "inv_freq", None)
    if not isinstance(frequencies, torch.Tensor) or frequencies.shape != (shape.key_dim // 2,):
        return None
    rotary = Rotary(frequencies.detach().float().cpu().numpy()[None])
    return rotary if _fits(model, shape, rotary) else None


def _fits(model: PreTrainedModel, shape: KVShape, rotary: Rotary) -> bool:
    arena = Arena(shape, _TOKENS)
    token = model.config.get_text_config().vocab_size // 2
    ids = torch.full((1, _TOKENS), token, device=input_device(model))
    with torch.inference_mode():
        _: Any = model(input_ids=ids, past_key_values=arena.cache, use_cache=True)
    block = arena.snapshot(0, _TOKENS)
    keys = to_float32(block.keys, block.dtype)
    still = rotary.turn(keys, -np.arange(_TOKENS))
    apart = float(np.abs(still - still[:, :, :1]).max())
    turned = float(np.abs(keys - keys[:, :, :1]).max())
    most = _MOST_FLOAT32 if block.dtype == "float32" else _MOST_OTHER
    # Keys that stay the same without being turned back have no positions to be freed of.
    return apart <= most * float(np.abs(keys).max()) < turned
