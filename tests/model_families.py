"""A tiny random instance of every family of language models that somebody may open.

Not mocks: each runs transformers' own code of its architecture, with sizes that a test can pay.
"""

from dataclasses import dataclass, field
from typing import Any

import torch
import transformers
from transformers import PreTrainedModel
from transformers.models.auto.modeling_auto import AutoModelForCausalLM

from centroidkv.models.attention import use_shared_kv_heads

__all__ = ["FAMILIES", "REFUSED", "WINDOW", "Family", "make_model"]

# Shorter than the prompts of the tests, and not a multiple of a block's 64 tokens.
WINDOW = 40
SIZES: dict[str, Any] = {
    "vocab_size": 272,
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 4096,
    "bos_token_id": 256,
    "eos_token_id": 257,
    "pad_token_id": 257,
}
# GPT-2 and its kin have other names for their sizes.
GPT = {"n_embd": 64, "n_head": 4, "n_layer": 2, "n_positions": 4096}
GPT_DROPS = (
    "hidden_size",
    "num_hidden_layers",
    "num_attention_heads",
    "max_position_embeddings",
    "num_key_value_heads",
    "intermediate_size",
)
EXPERTS = {
    "num_experts": 4,
    "num_local_experts": 4,
    "num_experts_per_tok": 2,
    "moe_intermediate_size": 32,
}
LATENT = {
    "num_key_value_heads": 4,
    "q_lora_rank": 16,
    "kv_lora_rank": 16,
    "qk_rope_head_dim": 8,
    "qk_nope_head_dim": 8,
    "v_head_dim": 12,
}
ROUTED = {
    "n_routed_experts": 4,
    "num_experts_per_tok": 2,
    "n_group": 1,
    "topk_group": 1,
    "moe_intermediate_size": 32,
    "first_k_dense_replace": 1,
}
INDEXED = {"index_n_heads": 2, "index_head_dim": 16, "index_topk": 16}
LINEAR = {
    "linear_num_key_heads": 2,
    "linear_num_value_heads": 4,
    "linear_key_head_dim": 8,
    "linear_value_head_dim": 8,
}
MAMBA = {"mamba_n_heads": 8, "mamba_d_state": 8, "mamba_n_groups": 1}
PER_LAYER = {"vocab_size_per_layer_input": 272, "hidden_size_per_layer_input": 8}
HEAD = {"head_dim": 16}
SLIDING = {"sliding_window": WINDOW}
FOUR = {"num_hidden_layers": 4}


@dataclass(frozen=True, slots=True)
class Family:
    """One architecture: its name in the documentation, its config class and sizes."""

    name: str
    keeps: str
    config: str
    sizes: dict[str, Any] = field(default_factory=dict)
    drops: tuple[str, ...] = ()


FULL, WINDOWED, ALIBI, LEARNT = "full", "sliding window", "full, ALiBi", "full, absolute positions"
MOE, MLA, UNEVEN = "full, experts", "latent (MLA)", "layers of several shapes"
FAMILIES = [
    Family("Llama", FULL, "LlamaConfig"),
    Family("Llama 3 (rescaled rope)", FULL, "LlamaConfig", {"rope_parameters": {
        "rope_type": "llama3", "rope_theta": 1e4, "factor": 4.0, "low_freq_factor": 1.0,
        "high_freq_factor": 4.0, "original_max_position_embeddings": 64}}),
    Family("Llama with YaRN", FULL, "LlamaConfig", {"rope_parameters": {
        "rope_type": "yarn", "rope_theta": 1e4, "factor": 4.0,
        "original_max_position_embeddings": 1024}}),
    Family("Qwen 2, 2.5", FULL, "Qwen2Config"),
    Family("Qwen 3", FULL, "Qwen3Config", HEAD),
    Family("Gemma", FULL, "GemmaConfig", HEAD),
    Family("Phi 1, 2", FULL, "PhiConfig"),
    Family("StableLM", FULL, "StableLmConfig"),
    Family("GPT-NeoX, Pythia", FULL, "GPTNeoXConfig"),
    Family("Cohere Command R", FULL, "CohereConfig"),
    Family("OLMo", FULL, "OlmoConfig"),
    Family("OLMo 2", FULL, "Olmo2Config"),
    Family("SmolLM 3", FULL, "SmolLM3Config"),
    Family("Granite", FULL, "GraniteConfig"),
    Family("GLM", FULL, "GlmConfig", HEAD),
    Family("GLM 4", FULL, "Glm4Config", HEAD),
    Family("Nemotron", FULL, "NemotronConfig"),
    Family("Hunyuan", FULL, "HunYuanDenseV1Config", HEAD),
    Family("Seed-OSS", FULL, "SeedOssConfig", HEAD),
    Family("ERNIE 4.5", FULL, "Ernie4_5Config", HEAD),
    Family("Apertus", FULL, "ApertusConfig"),
    Family("Helium", FULL, "HeliumConfig", HEAD),
    Family("GPT-J", FULL, "GPTJConfig", {**GPT, "rotary_dim": 8}, GPT_DROPS),
    Family("Falcon", FULL, "FalconConfig"),
    Family("Falcon (new architecture)", FULL, "FalconConfig",
           {"new_decoder_architecture": True, "num_kv_heads": 2}),
    Family("Mistral", WINDOWED, "MistralConfig", SLIDING),
    Family("Qwen 2 with windows", WINDOWED, "Qwen2Config",
           {**SLIDING, "use_sliding_window": True, "max_window_layers": 1}),
    Family("Phi 3, 4", WINDOWED, "Phi3Config", SLIDING),
    Family("StarCoder 2", WINDOWED, "Starcoder2Config", SLIDING),
    Family("Gemma 2", WINDOWED, "Gemma2Config", {**HEAD, **SLIDING}),
    Family("Gemma 3", WINDOWED, "Gemma3TextConfig", {**HEAD, **SLIDING, "num_hidden_layers": 6}),
    Family("GPT-OSS", WINDOWED, "GptOssConfig", {**HEAD, **SLIDING, **EXPERTS}),
    Family("Cohere Command A", WINDOWED, "Cohere2Config", {**SLIDING, **FOUR}),
    Family("OLMo 3", WINDOWED, "Olmo3Config", {**SLIDING, **FOUR}),
    Family("EXAONE 4", WINDOWED, "Exaone4Config", {**SLIDING, **FOUR}),
    Family("Llama 4", "chunked attention, experts", "Llama4TextConfig",
           {**HEAD, **FOUR, **EXPERTS, "attention_chunk_size": WINDOW,
            "intermediate_size_mlp": 64}),
    Family("Gemma 4", UNEVEN, "Gemma4TextConfig",
           {**HEAD, **SLIDING, **PER_LAYER, "num_hidden_layers": 6, "global_head_dim": 32,
            "num_global_key_value_heads": 1, "num_kv_shared_layers": 0}),
    Family("Gemma 4 with shared KV layers", UNEVEN, "Gemma4TextConfig",
           {**HEAD, **SLIDING, **PER_LAYER, "num_hidden_layers": 8, "global_head_dim": 32,
            "num_global_key_value_heads": 1, "num_kv_shared_layers": 2}),
    Family("MiMo V2 Flash", UNEVEN, "MiMoV2FlashConfig",
           {**HEAD, **SLIDING, **EXPERTS, **FOUR, "v_head_dim": 8, "swa_head_dim": 24,
            "swa_v_head_dim": 16, "swa_num_attention_heads": 4, "swa_num_key_value_heads": 1,
            "n_routed_experts": 4, "n_group": 1, "topk_group": 1}),
    Family("Mixtral", MOE, "MixtralConfig", EXPERTS),
    Family("Qwen 2 MoE", MOE, "Qwen2MoeConfig", {**EXPERTS, "shared_expert_intermediate_size": 32}),
    Family("Qwen 3 MoE", MOE, "Qwen3MoeConfig", {**HEAD, **EXPERTS}),
    Family("OLMoE", MOE, "OlmoeConfig", EXPERTS),
    Family("Granite MoE", MOE, "GraniteMoeConfig", EXPERTS),
    Family("Phi 3.5 MoE", MOE, "PhimoeConfig", EXPERTS),
    Family("GLM 4.5", MOE, "Glm4MoeConfig",
           {**HEAD, **EXPERTS, "n_routed_experts": 4, "n_group": 1, "topk_group": 1}),
    Family("MiniMax M2", MOE, "MiniMaxM2Config", {**HEAD, **EXPERTS, "rotary_dim": 8}),
    Family("DeepSeek V2", MLA, "DeepseekV2Config", {**LATENT, **ROUTED}),
    Family("DeepSeek V3, R1", MLA, "DeepseekV3Config", {**LATENT, **ROUTED}),
    Family("MiniCPM 3", MLA, "MiniCPM3Config", LATENT),
    Family("Bloom", ALIBI, "BloomConfig", {"n_layer": 2, "n_head": 4}, ("num_key_value_heads",)),
    Family("MPT", ALIBI, "MptConfig", {"d_model": 64, "n_heads": 4, "n_layers": 2,
                                       "max_seq_len": 4096, "expansion_ratio": 2}),
    Family("Falcon with ALiBi", ALIBI, "FalconConfig", {"alibi": True}),
    Family("GPT-2", LEARNT, "GPT2Config", GPT, GPT_DROPS),
    Family("GPT-BigCode, SantaCoder", LEARNT, "GPTBigCodeConfig", GPT, GPT_DROPS),
    Family("OPT", LEARNT, "OPTConfig", {"ffn_dim": 96, "word_embed_proj_dim": 64}),
    Family("GPT-Neo", LEARNT, "GPTNeoConfig",
           {"num_layers": 2, "num_heads": 4, "attention_types": [[["global", "local"], 1]],
            "window_size": WINDOW},
           ("num_hidden_layers", "num_attention_heads", "num_key_value_heads")),
]  # fmt: skip

STATE, HYBRID, INDEXER = "a running state", "attention and a running state", "attention by an index"
REFUSED = [
    Family("Mamba", STATE, "MambaConfig", {"state_size": 4}),
    Family("Mamba 2", STATE, "Mamba2Config",
           {"state_size": 8, "num_heads": 8, "head_dim": 16, "n_groups": 1}),
    Family("Falcon Mamba", STATE, "FalconMambaConfig", {"state_size": 4}),
    Family("RWKV", STATE, "RwkvConfig"),
    Family("Jamba", HYBRID, "JambaConfig", {"num_hidden_layers": 8, "mamba_d_state": 4, **EXPERTS}),
    Family("Bamba", HYBRID, "BambaConfig", {"attn_layer_indices": [1], **MAMBA}),
    Family("Falcon H1", HYBRID, "FalconH1Config", {"mamba_d_ssm": 128, **MAMBA}),
    Family("LFM 2", HYBRID, "Lfm2Config", {"layer_types": ["conv", "full_attention"]}),
    Family("Qwen 3 Next", HYBRID, "Qwen3NextConfig",
           {**HEAD, **FOUR, **LINEAR, **EXPERTS, "shared_expert_intermediate_size": 32}),
    Family("Qwen 3.5", HYBRID, "Qwen3_5TextConfig", {**HEAD, **FOUR, **LINEAR}),
    Family("Nemotron H", HYBRID, "NemotronHConfig",
           {**HEAD, **FOUR, "mamba_num_heads": 8, "mamba_head_dim": 8, "ssm_state_size": 8,
            "n_groups": 1, "hybrid_override_pattern": "M*-M"}),
    Family("Granite 4 hybrid", HYBRID, "GraniteMoeHybridConfig",
           {"layer_types": ["mamba", "attention"], **MAMBA, **EXPERTS}),
    Family("RecurrentGemma", HYBRID, "RecurrentGemmaConfig",
           {"num_hidden_layers": 3, "lru_width": 64, "attention_window_size": WINDOW}),
    Family("MiniMax", "a cache of its own", "MiniMaxConfig", {**HEAD, **EXPERTS}),
    Family("DeepSeek V3.2", INDEXER, "DeepseekV32Config", {**LATENT, **ROUTED, **INDEXED}),
    Family("GLM 5", INDEXER, "GlmMoeDsaConfig", {**LATENT, **ROUTED, **INDEXED}),
    Family("Llama with dynamic rope", "positions by length", "LlamaConfig", {"rope_parameters": {
        "rope_type": "dynamic", "rope_theta": 1e4, "factor": 4.0}}),
    Family("Phi 3 long context", "positions by length", "Phi3Config",
           {"original_max_position_embeddings": 64, "rope_parameters": {
               "rope_type": "longrope", "rope_theta": 1e4, "short_factor": [1.0] * 8,
               "long_factor": [2.0] * 8}}),
]  # fmt: skip


def make_model(family: Family, *, seed: int = 0) -> PreTrainedModel:
    """Build a family's random instance, with weights large enough that contexts matter."""
    sizes = {k: v for k, v in {**SIZES, **family.sizes}.items() if k not in family.drops}
    torch.manual_seed(seed)
    model = AutoModelForCausalLM.from_config(getattr(transformers, family.config)(**sizes))
    model.train(mode=False)
    with torch.no_grad():
        for weight in model.parameters():
            if weight.ndim > 1:
                weight.mul_(4)
    use_shared_kv_heads(model)
    return model
