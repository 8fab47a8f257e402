"""Keys turned back to before their positions, on tiny random models."""

from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from transformers import (
    CohereConfig,
    CohereForCausalLM,
    Gemma2Config,
    Gemma2ForCausalLM,
    GPT2Config,
    GPT2LMHeadModel,
    LlamaConfig,
    LlamaForCausalLM,
    PhiConfig,
    PhiForCausalLM,
    Qwen2Config,
    Qwen2ForCausalLM,
    Qwen3Config,
    Qwen3ForCausalLM,
)

from centroidkv.models.arena import Arena, kv_shape
from centroidkv.models.positions import rotary_of
from centroidkv.rotary import Rotary, from_float32, to_float32

SIZES: dict[str, Any] = {
    "vocab_size": 128, "hidden_size": 64, "intermediate_size": 64, "num_hidden_layers": 3,
    "num_attention_heads": 4, "num_key_value_heads": 2, "max_position_embeddings": 128,
    "bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 0,
}  # fmt: skip
SCALED = {"rope_type": "llama3", "rope_theta": 1e4, "factor": 8.0, "low_freq_factor": 1.0,
          "high_freq_factor": 4.0, "original_max_position_embeddings": 64}  # fmt: skip


def tiny(kind: Any, config: Any, **other: Any) -> Any:
    torch.manual_seed(0)
    return kind(config(**{**SIZES, **other})).train(mode=False)


@pytest.mark.parametrize(
    "model",
    [
        tiny(LlamaForCausalLM, LlamaConfig),
        tiny(LlamaForCausalLM, LlamaConfig, rope_parameters=SCALED),
        tiny(Qwen2ForCausalLM, Qwen2Config),
        tiny(Qwen3ForCausalLM, Qwen3Config, head_dim=16),
    ],
    ids=["Llama", "Llama scaled", "Qwen2", "Qwen3"],
)
def test_the_first_layers_keys_are_the_same_at_every_position(model: Any) -> None:
    shape = kv_shape(model)
    rotary = rotary_of(model, shape)
    assert rotary is not None
    ids = torch.tensor([[5, 9, 5, 77, 9, 5]])
    arena = Arena(shape, 8)
    with torch.inference_mode():
        model(input_ids=ids, past_key_values=arena.cache, use_cache=True)
    still = rotary.turn(arena.snapshot(0, 6).keys, -np.arange(6))
    np.testing.assert_allclose(still[0, :, [2, 5]], still[0, :, [0, 0]], atol=1e-5)
    np.testing.assert_allclose(still[0, :, 4], still[0, :, 1], atol=1e-5)


@pytest.mark.parametrize(
    "model",
    [
        tiny(GPT2LMHeadModel, GPT2Config, n_embd=64, n_layer=2, n_head=4),
        tiny(PhiForCausalLM, PhiConfig),
        tiny(CohereForCausalLM, CohereConfig),
        tiny(Gemma2ForCausalLM, Gemma2Config, head_dim=16),
    ],
    ids=["learnt positions", "partial turning", "neighbouring pairs", "windows"],
)
def test_other_kinds_of_positions_are_not_guessed(model: Any) -> None:
    assert rotary_of(model, kv_shape(model)) is None


def test_frequencies_that_the_model_does_not_use_are_noticed() -> None:
    model = tiny(LlamaForCausalLM, LlamaConfig)
    embedding = model.get_decoder().rotary_emb
    forward = embedding.forward
    embedding.forward = lambda x, position_ids: forward(x, position_ids * 2)
    assert rotary_of(model, kv_shape(model)) is None


@given(st.integers(0, 5000), st.integers(-5000, 5000))
def test_turning_on_is_turning_once(start: int, further: int) -> None:
    rng = np.random.default_rng(start)
    rotary = Rotary(np.float32([[1.0, 0.1, 0.003]]))
    keys = rng.standard_normal((2, 3, 4, 6), dtype=np.float32)
    at, on = np.arange(start, start + 4), np.full(4, further)
    twice = rotary.turn(rotary.turn(keys, at), on)
    np.testing.assert_allclose(twice, rotary.turn(keys, at + on), atol=5e-3)


def test_bfloat16_is_rounded_as_torch_rounds_it() -> None:
    numbers = np.random.default_rng(0).standard_normal(10_000, dtype=np.float32) * 100
    expected = torch.from_numpy(numbers).bfloat16()
    bits = from_float32(numbers, "bfloat16")
    assert (bits == expected.view(torch.uint16).numpy()).all()
    assert (to_float32(bits, "bfloat16") == expected.float().numpy()).all()
