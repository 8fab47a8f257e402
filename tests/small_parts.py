"""Small real parts for unit tests: a random two-layer Llama, a byte tokenizer, a hash embedder.

Nothing here is a mock: the model runs, the tokenizer tokenizes, the embedder embeds.
"""

import hashlib
from collections.abc import Sequence

import numpy as np
import torch
from tokenizers import Tokenizer, decoders, pre_tokenizers
from tokenizers.models import BPE
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from centroidkv.types import FloatArray, KVBlock

TEMPLATE = (
    "{% for m in messages %}<|{{ m['role'] }}|>{{ m['content'] }}<|end|>{% endfor %}"
    "{% if add_generation_prompt %}<|assistant|>{% endif %}"
)
# Three forms in which templates write tool calls, and one that prints the date.
_ROLES = (
    "{% for m in messages %}<|user|>{{ m['role'] }}\n{{ m['content'] }}"
    "{% if m.tool_calls %}CALLS{% endif %}<|end|>{% endfor %}"
    "{% if add_generation_prompt %}<|user|>assistant\n{% endif %}"
)
_TOOLS = "{% if tools %}<|system|>{{ tools | tojson }}<|end|>{% endif %}"
HERMES_CALLS = _TOOLS + _ROLES.replace(
    "CALLS",
    "{% for c in m.tool_calls %}<tool_call>\n"
    '{"name": {{ c.function.name | tojson }}, "arguments": {{ c.function.arguments | tojson }}}\n'
    "</tool_call>{% endfor %}",
)
BARE_CALLS = _TOOLS + _ROLES.replace(
    "CALLS",
    '{% set c = m.tool_calls[0].function %}{"name": "{{ c.name }}", '
    '"parameters": {{ c.arguments | tojson }}}',
)
LISTED_CALLS = _TOOLS + _ROLES.replace(
    "CALLS",
    "[TOOL_CALLS] [{% for c in m.tool_calls %}"
    '{"name": "{{ c.function.name }}", "arguments": {{ c.function.arguments | tojson }}, '
    '"id": "{{ c.id }}"}{% if not loop.last %}, {% endif %}{% endfor %}]',
)
DATED = "<|system|>Today is {{ strftime_now('%d %b %Y') }}.<|end|>" + TEMPLATE
SPECIAL = ["<|bos|>", "<|end|>", "<|system|>", "<|user|>", "<|assistant|>"]


class HashEmbedder:
    """Embeds a text as the normalised sum of its words' hashed directions."""

    dim = 64
    fingerprint = hashlib.sha256(b"hash embedder").hexdigest()

    def embed(self, texts: Sequence[str]) -> FloatArray:
        rows = [self._one(t) for t in texts]
        return np.stack(rows) if rows else np.empty((0, self.dim), np.float32)

    def _one(self, text: str) -> FloatArray:
        total = np.zeros(self.dim)
        for word in text.lower().replace("?", "").split():
            seed = int.from_bytes(hashlib.sha256(word.encode("utf-8", "replace")).digest()[:4])
            total += np.random.default_rng(seed).standard_normal(self.dim)
        norm = float(np.linalg.norm(total))
        return (total / norm if norm else total).astype(np.float32)


def make_tokenizer() -> PreTrainedTokenizerFast:
    """A tokenizer whose tokens are bytes."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    core = Tokenizer(BPE(vocab={c: i for i, c in enumerate(alphabet)}, merges=[]))
    core.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    core.decoder = decoders.ByteLevel()
    core.add_special_tokens(SPECIAL)
    return PreTrainedTokenizerFast(
        tokenizer_object=core, bos_token="<|bos|>", eos_token="<|end|>", chat_template=TEMPLATE
    )


def make_llama(*, seed: int = 0, positions: int = 4096) -> LlamaForCausalLM:
    """A random Llama with grouped KV heads."""
    torch.manual_seed(seed)
    config = LlamaConfig(
        vocab_size=272,
        hidden_size=64,
        intermediate_size=128,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=positions,
        bos_token_id=256,
        eos_token_id=257,
    )
    llama = LlamaForCausalLM(config)
    with torch.no_grad():
        # The first 94 tokens are the visible ASCII characters: it answers in those alone.
        llama.lm_head.weight[94:] = 0
    return llama


def make_block(num_tokens: int = 64, *, seed: int = 0, dtype: str = "float32") -> KVBlock:
    """A block of random KV, two layers, two heads, keys of four and values of six numbers."""
    random = np.random.default_rng(seed)
    kinds = {"float32": np.float32, "float16": np.float16}
    if dtype == "bfloat16":
        keys = random.integers(0, 1 << 16, (2, 2, num_tokens, 4), dtype=np.uint16)
        values = random.integers(0, 1 << 16, (2, 2, num_tokens, 6), dtype=np.uint16)
        return KVBlock(keys, values, dtype)
    keys = random.standard_normal((2, 2, num_tokens, 4)).astype(kinds[dtype])
    values = random.standard_normal((2, 2, num_tokens, 6)).astype(kinds[dtype])
    return KVBlock(keys, values, dtype)


def teach(model: LlamaForCausalLM, prompt: Sequence[int], answer: Sequence[int]) -> None:
    """Let a model learn one answer to one prompt by heart."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        ids = torch.tensor([[*prompt, *answer]])
        labels = ids.clone()
        labels[0, : len(prompt)] = -100
        model.train()
        steps = torch.optim.AdamW(model.parameters(), lr=1e-2)
        for _ in range(300):
            loss = model(input_ids=ids, labels=labels).loss
            loss.backward()
            steps.step()
            steps.zero_grad()
            if loss.item() < 0.01:
                break
        model.train(mode=False)
    assert loss.item() < 0.05, "the answer was not learnt"
