"""A digest of a loaded model's weights, whatever form a quantisation gave them.

Knows tensors of tensors (torchao), packed quantised parameters (torch), and weights that
accelerate holds outside the model. No digest depends on where a weight lies.
"""

import hashlib
import json
from collections.abc import Iterator
from typing import Any

import torch
from transformers import PreTrainedModel

from centroidkv.models.int8 import INT8, is_int8

__all__ = ["quantization_of", "weights_digest"]


def weights_digest(model: PreTrainedModel) -> str:
    """Return the SHA-256 of all weights by name, shape, type and content."""
    hasher = hashlib.sha256()
    for name, value in sorted(model.state_dict().items()):
        is_away = isinstance(value, torch.Tensor) and value.is_meta
        for part in _parts(_offloaded(model, name) if is_away else value):
            if isinstance(part, torch.Tensor):
                hasher.update(f"{name}{tuple(part.shape)}{part.dtype}".encode())
                raw = part.detach().cpu().contiguous().flatten()
                hasher.update(raw.view(torch.uint8).numpy().data)
            else:
                hasher.update(f"{name}{part!r}".encode())
    return hasher.hexdigest()


def quantization_of(model: PreTrainedModel) -> str:
    """Say how a model is quantised: ours, transformers' config as JSON, both, or ""."""
    ours = INT8 if is_int8(model) else ""
    config = getattr(model.config, "quantization_config", None)
    if config is None:
        return ours
    known = config if isinstance(config, dict) else config.to_dict()
    return ours + json.dumps(known, sort_keys=True, default=str)


def _parts(value: Any) -> Iterator[Any]:
    """Yield plain tensors, and whatever else a weight consists of."""
    if isinstance(value, (tuple, list)):
        for part in value:
            yield from _parts(part)
    elif not isinstance(value, torch.Tensor):
        yield value
    elif hasattr(value, "__tensor_flatten__"):
        names, rest = value.__tensor_flatten__()
        yield from (str(rest), type(value).__name__)
        for name in names:
            yield from _parts(getattr(value, name))
    elif value.is_quantized:
        yield value.int_repr()
        if value.qscheme() in (torch.per_channel_affine, torch.per_channel_symmetric):
            yield from (value.q_per_channel_scales(), value.q_per_channel_zero_points())
        else:
            yield (value.q_scale(), value.q_zero_point())
    else:
        yield value


def _offloaded(model: PreTrainedModel, name: str) -> torch.Tensor:
    """Return a weight that accelerate holds on the CPU or on disk until it is needed."""
    path, _, weight = name.rpartition(".")
    hook: Any = getattr(model.get_submodule(path), "_hf_hook", None)
    for each in getattr(hook, "hooks", [hook]):
        weights = getattr(each, "weights_map", None)
        if weights is not None:
            found: torch.Tensor = weights[weight]
            return found
    raise ValueError(f"weight {name!r} is on no device; load the model with its weights")
