"""Attention behind a prefix: in two parts without a mask, as in one with it."""

from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.nn.functional import scaled_dot_product_attention
from transformers import PreTrainedTokenizerFast

from centroidkv.models import attention
from centroidkv.models.attention import LEAST_SPLIT
from centroidkv.models.loading import use_shared_kv_heads, wrap_model
from small_parts import make_llama


@settings(deadline=None, max_examples=25)
@given(
    new=st.integers(LEAST_SPLIT, LEAST_SPLIT + 70),
    old=st.integers(1, 600),
    heads=st.sampled_from([(4, 1), (6, 3), (9, 3), (2, 2)]),
    dtype=st.sampled_from([torch.float32, torch.bfloat16]),
    seed=st.integers(0, 99),
)
def test_two_parts_are_one_softmax(
    new: int, old: int, heads: tuple[int, int], dtype: torch.dtype, seed: int
) -> None:
    random = torch.Generator().manual_seed(seed)
    query = torch.randn(1, heads[0], new, 16, generator=random).to(dtype)
    key, value = torch.randn(2, 1, heads[1], old + new, 16, generator=random).to(dtype)
    mask = torch.ones(new, old + new, dtype=torch.bool).tril(old)
    whole = scaled_dot_product_attention(query, key, value, attn_mask=mask, enable_gqa=True)
    parts = attention._behind_prefix(query, key, value, None)
    tolerance = 1e-5 if dtype == torch.float32 else 2e-2
    torch.testing.assert_close(parts.transpose(1, 2), whole, atol=tolerance, rtol=tolerance)


@pytest.mark.parametrize(("old", "new", "parts"), [(10, 500, 2), (700, 500, 2), (700, 40, 0)])
def test_many_tokens_behind_a_prefix_are_run_in_two_parts(
    tokenizer: PreTrainedTokenizerFast,
    monkeypatch: pytest.MonkeyPatch,
    old: int,
    new: int,
    parts: int,
) -> None:
    plain = make_llama()
    use_shared_kv_heads(plain)
    model = wrap_model(plain, tokenizer)
    taken: list[int] = []
    split = attention._behind_prefix

    def counted(*args: Any) -> torch.Tensor:
        taken.append(1)
        return split(*args)

    monkeypatch.setattr(attention, "_behind_prefix", counted)
    ids = [(7 * i + 3) % 50 for i in range(old + new)]
    logits = []
    for cuts in ([], [old]):
        sequence = model.open_sequence(len(ids) + 1)
        for start, stop in zip([0, *cuts], [*cuts, len(ids)], strict=True):
            sequence.prefill(ids[start:stop])
        logits.append(sequence.logits)
        sequence.close()
    torch.testing.assert_close(*logits, atol=1e-4, rtol=1e-4)
    assert len(taken) == (plain.config.num_hidden_layers if parts else 0)
