"""The short way through a Sentence-BERT model gives what `encode` gives."""

from pathlib import Path

import numpy as np
import pytest
import torch
from sentence_transformers import SentenceTransformer
from sentence_transformers.sentence_transformer import modules as parts
from transformers import BertConfig, BertModel

from centroidkv.routing.embedder import SentenceBertEmbedder
from centroidkv.routing.sentence_pipeline import BATCH, SentencePipeline
from small_parts import make_tokenizer

ODD = [
    "",
    " ",
    "a",
    "Hello, WORLD?!",
    "x" * 500,
    "many words " * 40,
    "질문입니다 🎉",
    "tab\tnew\nline",
]


@pytest.fixture(scope="module")
def encoder(tmp_path_factory: pytest.TempPathFactory) -> parts.Transformer:
    folder: Path = tmp_path_factory.mktemp("bert")
    torch.manual_seed(0)
    tokenizer = make_tokenizer()
    tokenizer.pad_token, tokenizer.chat_template = "<|end|>", None
    config = BertConfig(
        vocab_size=len(tokenizer),
        hidden_size=32,
        num_hidden_layers=2,
        num_attention_heads=4,
        intermediate_size=64,
        max_position_embeddings=128,
    )
    BertModel(config).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return parts.Transformer(str(folder), max_seq_length=100)


def sentence_bert(encoder: parts.Transformer, mode: str = "mean", **options) -> SentenceTransformer:
    pooling = parts.Pooling(32, pooling_mode=mode)
    return SentenceTransformer(modules=[encoder, pooling, *options.pop("more", ())], **options)


def encoded(model: SentenceTransformer, texts: list[str]) -> np.ndarray:
    return model.encode(texts, normalize_embeddings=True, show_progress_bar=False)


@pytest.mark.parametrize("texts", [["one question?"], ODD, [f"number {i} " * i for i in range(99)]])
def test_vectors_are_those_of_encode(encoder: parts.Transformer, texts: list[str]) -> None:
    model = sentence_bert(encoder, more=[parts.Normalize()])
    pipeline = SentencePipeline.of(model)
    assert pipeline is not None
    found = pipeline.embed(texts)
    assert found.dtype == np.float32
    np.testing.assert_allclose(found, encoded(model, texts), atol=1e-5)


def test_texts_of_one_length_and_of_several_are_the_same_alone_and_together(encoder) -> None:
    pipeline = SentencePipeline.of(sentence_bert(encoder))
    texts = [f"{i} same length"[:13] for i in range(BATCH + 3)] + ["another"]
    alone = np.concatenate([pipeline.embed([t]) for t in texts])
    np.testing.assert_allclose(pipeline.embed(texts), alone, atol=1e-5)


def test_nothing_to_embed_gives_no_rows(encoder: parts.Transformer) -> None:
    assert SentenceBertEmbedder.wrap(sentence_bert(encoder)).embed([]).shape[0] == 0


@pytest.mark.parametrize("case", ["max", "dense", "prompt", "truncated"])
def test_other_models_are_left_to_encode(encoder: parts.Transformer, case: str) -> None:
    model = {
        "max": lambda: sentence_bert(encoder, "max"),
        "dense": lambda: sentence_bert(encoder, more=[parts.Dense(32, 16)]),
        "prompt": lambda: sentence_bert(encoder, prompts={"q": "query: "}, default_prompt_name="q"),
        "truncated": lambda: sentence_bert(encoder, truncate_dim=8),
    }[case]()
    assert SentencePipeline.of(model) is None
    found = SentenceBertEmbedder.wrap(model).embed(ODD)
    np.testing.assert_allclose(found, encoded(model, ODD), atol=1e-5)
