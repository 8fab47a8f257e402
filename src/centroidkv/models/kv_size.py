"""How large a model's KV is, read off its config: no weights are loaded."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from transformers import AutoConfig

from centroidkv.errors import ModelNotFound
from centroidkv.models.loading import locate

# Layers that keep keys and values of every token in a store; windows are cut in attention alone.
_KEEPING = {"full_attention", "sliding_attention"}
# Fields of configs whose KV has another form: latent, or shared between layers.
_OTHER_FORMS = ("kv_lora_rank", "num_kv_shared_layers", "global_head_dim")

__all__ = ["KVSize", "kv_size"]


@dataclass(frozen=True, slots=True)
class KVSize:
    """The KV of one token: how many numbers, and how many bytes of `dtype` they take."""

    num_numbers: int
    num_bytes: int
    dtype: str


def kv_size(source: str | Path, *, dtype: str | None = None) -> KVSize | None:
    """Return what a token's KV takes; None where the config alone does not tell.

    Args:
        source: As for `load_model`.
        dtype: A torch dtype's name; by default what `load_model` would take here.

    Raises:
        ModelNotFound: There is no such model.
    """
    folder, options = locate(str(source))
    try:
        config: Any = AutoConfig.from_pretrained(folder, **options).get_text_config()
    except (OSError, ValueError, KeyError, ImportError) as error:
        first = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise ModelNotFound(f"cannot read the config of {str(source)!r}: {first}") from error
    numbers = _numbers_per_token(config)
    if numbers is None:
        return None
    kind = getattr(torch, dtype or _usual_dtype(config), torch.float32)
    return KVSize(numbers, numbers * kind.itemsize, str(kind).removeprefix("torch."))


def _numbers_per_token(config: Any) -> int | None:
    kinds = set(getattr(config, "layer_types", None) or ["full_attention"])
    if not kinds <= _KEEPING or any(getattr(config, name, None) for name in _OTHER_FORMS):
        return None
    layers = getattr(config, "num_hidden_layers", None)
    queries = getattr(config, "num_attention_heads", None)
    if not layers or not queries:
        return None
    heads = getattr(config, "num_key_value_heads", None) or queries
    size = getattr(config, "head_dim", None) or config.hidden_size // queries
    return int(2 * layers * heads * size)


def _usual_dtype(config: Any) -> str:
    if not torch.cuda.is_available():
        return "float32"
    return str(getattr(config, "dtype", None) or "float32").removeprefix("torch.")
