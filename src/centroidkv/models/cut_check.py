"""A check, when a model is opened, that KV put back continues as if it had just been computed.

The classes below pass the golden tests on random instances. Any other architecture is tried with
a few tokens first: a state that it keeps outside its cache would make every reuse silently wrong.
"""

from typing import Any

import torch
from transformers import PreTrainedModel

from centroidkv.errors import UnsupportedModel
from centroidkv.models.arena import Arena, KVShape, input_device

__all__ = ["TESTED", "require_cuttable"]

TESTED = frozenset({
    "ApertusForCausalLM", "BloomForCausalLM", "Cohere2ForCausalLM", "CohereForCausalLM",
    "DeepseekV2ForCausalLM", "DeepseekV3ForCausalLM", "Ernie4_5ForCausalLM",
    "Exaone4ForCausalLM", "FalconForCausalLM", "GPT2LMHeadModel", "GPTBigCodeForCausalLM",
    "GPTJForCausalLM", "GPTNeoForCausalLM", "GPTNeoXForCausalLM", "Gemma2ForCausalLM",
    "Gemma3ForCausalLM", "Gemma4ForCausalLM", "GemmaForCausalLM", "Glm4ForCausalLM",
    "Glm4MoeForCausalLM", "GlmForCausalLM", "GptOssForCausalLM", "GraniteForCausalLM",
    "GraniteMoeForCausalLM", "HeliumForCausalLM", "HunYuanDenseV1ForCausalLM",
    "Llama4ForCausalLM", "LlamaForCausalLM", "MiMoV2FlashForCausalLM", "MiniCPM3ForCausalLM",
    "MiniMaxM2ForCausalLM", "MistralForCausalLM", "MixtralForCausalLM", "MptForCausalLM",
    "NemotronForCausalLM", "OPTForCausalLM", "Olmo2ForCausalLM", "Olmo3ForCausalLM",
    "OlmoForCausalLM", "OlmoeForCausalLM", "Phi3ForCausalLM", "PhiForCausalLM",
    "PhimoeForCausalLM", "Qwen2ForCausalLM", "Qwen2MoeForCausalLM", "Qwen3ForCausalLM",
    "Qwen3MoeForCausalLM", "SeedOssForCausalLM", "SmolLM3ForCausalLM", "StableLmForCausalLM",
    "Starcoder2ForCausalLM",
})  # fmt: skip
_TOKENS, _CUT = 24, 13
# Largest difference of two logits, as a part of the range of all: sums in another order differ by
# far less, and KV that does not fit by about as much as any two answers.
_MOST_FLOAT32, _MOST_OTHER = 1e-3, 0.1


def require_cuttable(model: PreTrainedModel, shape: KVShape) -> None:
    """Refuse a model of an untested class whose logits behind restored KV are not the same.

    Two forwards of a few tokens; none for a tested class.

    Raises:
        UnsupportedModel: They differ by more than the order of sums explains.
    """
    name = type(model).__name__
    if name in TESTED:
        return
    ids = [(7 * i + 3) % model.config.get_text_config().vocab_size for i in range(_TOKENS)]
    whole, cut = Arena(shape, _TOKENS), Arena(shape, _TOKENS)
    expected = _logits(model, ids, whole)
    cut.append(whole.snapshot(0, _CUT))
    found = _logits(model, ids[_CUT:], cut)
    spread = float(expected.max() - expected.min())
    most = _MOST_FLOAT32 if shape.dtype == torch.float32 else _MOST_OTHER
    if not float((found - expected).abs().max()) <= most * spread:
        raise UnsupportedModel(
            f"{name} answers otherwise when its KV is put back, so it keeps a state that is not "
            "in its cache; use a model with full or sliding-window attention in every layer"
        )


def _logits(model: PreTrainedModel, ids: list[int], arena: Arena) -> torch.Tensor:
    """Run tokens behind what the arena holds; return the logits of the last, [vocabulary]."""
    tokens = torch.tensor([ids], device=input_device(model))
    with torch.inference_mode():
        output: Any = model(input_ids=tokens, past_key_values=arena.cache, use_cache=True)
    logits: torch.Tensor = output.logits[0, -1].float()
    return logits
