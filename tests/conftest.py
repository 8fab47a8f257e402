"""Small real parts for unit tests: a random two-layer Llama, a byte tokenizer, a hash embedder.

Nothing here is a mock: the model runs, the tokenizer tokenizes, the store writes files.
"""

import hashlib
import os
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

os.environ["HF_HUB_OFFLINE"] = "1"
os.environ["TOKENIZERS_PARALLELISM"] = "false"

import numpy as np
import pytest
import torch
from tokenizers import Tokenizer, decoders, pre_tokenizers
from tokenizers.models import BPE
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from centroidkv import Engine
from centroidkv.models.loading import wrap_model
from centroidkv.models.transformers_model import TransformersModel
from centroidkv.types import FloatArray, KVBlock

TEMPLATE = (
    "{% for m in messages %}<|{{ m['role'] }}|>{{ m['content'] }}<|end|>{% endfor %}"
    "{% if add_generation_prompt %}<|assistant|>{% endif %}"
)
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
    return LlamaForCausalLM(config)


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


@pytest.fixture(scope="session")
def tokenizer() -> PreTrainedTokenizerFast:
    return make_tokenizer()


@pytest.fixture(scope="session")
def model(tokenizer: PreTrainedTokenizerFast) -> TransformersModel:
    return wrap_model(make_llama(), tokenizer)


@pytest.fixture
def embedder() -> HashEmbedder:
    return HashEmbedder()


@pytest.fixture
def open_engine(
    tmp_path: Path, model: TransformersModel, embedder: HashEmbedder
) -> Iterator[Callable[..., Engine]]:
    """Open engines on one store folder, one after the other or at once; all are closed."""
    opened: list[Engine] = []

    def opening(path: Path | None = None, **options: object) -> Engine:
        options = {"model": model, "embedder": embedder, **options}
        engine = Engine.open(path or tmp_path / "store", **options)
        opened.append(engine)
        return engine

    yield opening
    for engine in opened:
        engine.close()


@pytest.fixture
def engine(open_engine: Callable[..., Engine]) -> Engine:
    return open_engine()
