"""Whether a model can be blended: what is known to forbid it, and a trial of what is not known.

Not the names of architectures decide. Where keys can be turned, a few tokens are run twice: by
the model as a whole, and layer by layer with a placed passage. Only a model whose layers, called
one by one on scattered rows, give the same logits is blended.
"""

import numpy as np
import torch
from transformers import PreTrainedModel

from centroidkv.models.arena import Arena, KVShape, input_device
from centroidkv.models.attention import NAME
from centroidkv.models.blend import Blender
from centroidkv.models.blend_choice import Recipe
from centroidkv.models.free_keys import free_block
from centroidkv.models.int8 import INT8, is_int8
from centroidkv.models.weights import quantization_of
from centroidkv.placement import PlacedPassage
from centroidkv.rotary import Rotary

# Of the largest logit: how far the trial may be from the plain forward.
_TOLERANCE, _COARSE_TOLERANCE = 1e-3, 0.05
_HEAD, _PASSAGE, _END = 5, 9, 4

__all__ = ["problem_of"]


def problem_of(model: PreTrainedModel, shape: KVShape, rotary: Rotary | None) -> str | None:
    """Say why a model cannot be blended, None where it can. Costs some forwards of 18 tokens."""
    name = type(model).__name__
    if rotary is None:
        return (
            f"{name} has windows, layers of several kinds or positions that keys cannot be freed of"
        )
    if (kind := model.config._attn_implementation) != NAME:
        return (
            f"{name} attends by {kind!r}, which cannot leave rows out: open it by folder or name, "
            "with attn_implementation='sdpa'"
        )
    if quantization_of(model) not in ("", INT8):
        return f"{name} has quantised layers that may not take each token for itself"
    try:
        worst = _worst(model, shape, rotary)
    except Exception as error:  # noqa: BLE001 - whatever an odd model raises, it is not blended
        return f"the layers of {name} cannot be run one by one ({error})"
    is_fine = shape.dtype == torch.float32 and not is_int8(model)
    if not worst <= (_TOLERANCE if is_fine else _COARSE_TOLERANCE):
        return f"the layers of {name}, run one by one, give other logits than the model"
    return None


def _worst(model: PreTrainedModel, shape: KVShape, rotary: Rotary) -> float:
    """Return the largest difference of two logits, as a part of the largest logit.

    A passage right behind its own head is what it would be there: nothing needs correction.
    """
    size = min(model.config.get_text_config().vocab_size, 97)
    tokens = [(7 * i + 3) % size for i in range(_HEAD + _PASSAGE + _END)]
    whole = Arena(shape, len(tokens))
    ids = torch.tensor([tokens], device=input_device(model))
    with torch.inference_mode():
        plain = model(input_ids=ids, past_key_values=whole.cache, use_cache=True).logits[0, -1]
    stop = _HEAD + _PASSAGE
    free = free_block(whole.snapshot(_HEAD, stop), rotary, _HEAD)
    passages = [PlacedPassage(_HEAD, stop, free)]
    blender, worst = Blender(model, rotary), 0.0
    for recipe in map(Recipe.of, (0.0, 0.4, 1.0, None)):
        arena = Arena(shape, len(tokens))
        arena.append(whole.snapshot(0, 2))
        logits = blender.run(arena, tokens[2:], passages, recipe).logits[0]
        worst = max(worst, float((logits - plain).abs().max() / plain.abs().max()))
    return worst if np.isfinite(worst) else float("inf")
