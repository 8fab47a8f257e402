"""Attention without repeated KV heads.

transformers' own sdpa copies every key and value head for each query head that shares it
whenever a mask is needed, which is the case for each request that continues a stored prefix.
torch's kernel can share them (`enable_gqa`). Registered under a name of its own through
transformers' public interface and chosen per model; nothing is patched.
"""

from typing import Any

import torch
from torch.nn.functional import scaled_dot_product_attention
from transformers import AttentionInterface, AttentionMaskInterface, PreTrainedModel
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import sdpa_mask

from centroidkv.models.packed import KEYWORD

NAME = "centroidkv_sdpa"

__all__ = ["NAME", "use_shared_kv_heads"]


def use_shared_kv_heads(model: PreTrainedModel) -> None:
    """Switch a model that uses sdpa to the variant that shares KV heads; leave others alone."""
    if model.config._attn_implementation != "sdpa":
        return
    AttentionInterface.register(NAME, _attend)
    AttentionMaskInterface.register(NAME, sdpa_mask)
    model.set_attn_implementation(NAME)


def _attend(
    module: torch.nn.Module,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: torch.Tensor | None,
    **options: Any,
) -> tuple[torch.Tensor, None]:
    """Attend; query [batch, heads, new, dim], key and value [batch, kv_heads, all, dim]."""
    pack = options.pop(KEYWORD, None)
    if pack is not None:
        packed: tuple[torch.Tensor, None] = pack.attend(module, query, **options)
        return packed
    attention_mask = _end_aligned(query, key, attention_mask)
    unusual = options.get("softcap") or options.get("position_bias") is not None
    if unusual or options.get("dropout") or query.shape[1] == key.shape[1]:
        result: tuple[torch.Tensor, None] = sdpa_attention_forward(
            module, query, key, value, attention_mask, **options
        )
        return result
    causal = options.get("is_causal")
    causal = getattr(module, "is_causal", True) if causal is None else causal
    output = scaled_dot_product_attention(
        query,
        key,
        value,
        attn_mask=attention_mask,
        is_causal=bool(causal) and attention_mask is None and query.shape[2] > 1,
        scale=options.get("scaling"),
        enable_gqa=True,
    )
    return output.transpose(1, 2).contiguous(), None


def _end_aligned(
    query: torch.Tensor, key: torch.Tensor, attention_mask: torch.Tensor | None
) -> torch.Tensor | None:
    """Return the mask of queries that are the last of their keys; [new, all] where it was left out.

    Layers that share KV run the last queries alone, and leave a mask out that was not needed for
    all of them. The kernel would count such queries from the first key on.
    """
    new, known = query.shape[2], key.shape[2]
    if attention_mask is not None or not 1 < new < known:
        return attention_mask
    mask = torch.ones(new, known, dtype=torch.bool, device=query.device)
    return mask.tril(known - new)
