"""Attention without repeated KV heads.

transformers' own sdpa copies every key and value head for each query head that shares it
whenever a mask is needed, which is the case for each request that continues a stored prefix.
torch's kernel can share them (`enable_gqa`). And a kernel that is given a mask computes what the
mask leaves out: many tokens behind a prefix attend to the prefix and, causally, to each other, and
the two are merged by log-sum-exp (T. Dao et al., "FlashAttention", arXiv:2205.14135). Registered
under a name of its own through transformers' public interface and chosen per model; nothing is
patched.
"""

from typing import Any

import torch
from torch.nn.functional import scaled_dot_product_attention
from transformers import AttentionInterface, AttentionMaskInterface, PreTrainedModel
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import causal_mask_function, sdpa_mask

from centroidkv.models.packed import KEYWORD

NAME = "centroidkv_sdpa"
# New tokens behind a prefix from which on two parts are cheaper than one with a mask.
LEAST_SPLIT = 384

__all__ = ["NAME", "use_shared_kv_heads"]


def use_shared_kv_heads(model: PreTrainedModel) -> None:
    """Switch a model that uses sdpa to the variant that shares KV heads; leave others alone."""
    if model.config._attn_implementation != "sdpa":
        return
    AttentionInterface.register(NAME, _attend)
    AttentionMaskInterface.register(NAME, _mask)
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
    unusual = options.get("softcap") or options.get("position_bias") is not None
    if attention_mask is None and not unusual and _can_split(query, key, value):
        return _behind_prefix(query, key, value, options.get("scaling")), None
    attention_mask = _end_aligned(query, key, attention_mask)
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


def _mask(**asked: Any) -> torch.Tensor | None:
    """Make a mask as `sdpa_mask` does; none where the last of all tokens are run, all of them seen.

    `_attend` takes queries without a mask for the last of their keys.
    """
    of_all = asked.get("mask_function", causal_mask_function) is causal_mask_function
    of_all = of_all and asked.get("attention_mask") is None and asked.get("local_size") is None
    of_all = of_all and asked.get("allow_is_causal_skip", True)
    new, known = asked["q_length"], asked["kv_length"]
    end, known_end = asked.get("q_offset", 0) + new, asked.get("kv_offset", 0) + known
    if of_all and LEAST_SPLIT <= new < known and end == known_end:
        return None
    mask: torch.Tensor | None = sdpa_mask(**asked)
    return mask


def _can_split(query: torch.Tensor, key: torch.Tensor, value: torch.Tensor) -> bool:
    same_size = query.shape[3] == key.shape[3] == value.shape[3]
    is_known = query.device.type == "cpu" and query.dtype in (torch.float32, torch.bfloat16)
    return same_size and is_known and LEAST_SPLIT <= query.shape[2] < key.shape[2]


def _behind_prefix(
    query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, scale: float | None
) -> torch.Tensor:
    """Attend with the last tokens to all of them; [batch, new, heads, dim]."""
    old = key.shape[2] - query.shape[2]
    flash = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu
    before, before_sum = flash(query, key[:, :, :old], value[:, :, :old], scale=scale)
    own, own_sum = flash(query, key[:, :, old:], value[:, :, old:], is_causal=True, scale=scale)
    # Of two parts of one softmax, each has the weight of its own sum.
    weight = torch.sigmoid(before_sum - own_sum).unsqueeze(-1).to(own.dtype)
    merged: torch.Tensor = own.lerp(before, weight)
    return merged.transpose(1, 2).contiguous()


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
