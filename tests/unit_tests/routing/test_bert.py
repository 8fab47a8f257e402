"""The fast way to embed one text gives what the model gives, or is not taken."""

import numpy as np
import pytest
import torch
from transformers import BertConfig, BertModel, DistilBertConfig, DistilBertModel

from centroidkv.routing import bert
from centroidkv.routing.bert import QuestionEncoder
from small_parts import make_tokenizer

MAX_TOKENS = 100
TEXTS = [
    "a",
    "Hello, WORLD?!",
    "질문입니다 🎉",
    "how do I block a lost card?",
    "many words " * 40,
]


def model(**changes: object) -> BertModel:
    torch.manual_seed(0)
    settings = {
        "vocab_size": 272,
        "hidden_size": 32,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "intermediate_size": 64,
        "max_position_embeddings": 128,
    }
    made = BertModel(BertConfig(**{**settings, **changes}))
    for weight in made.parameters():  # fresh ones have biases of 0, which would hide mistakes
        torch.nn.init.normal_(weight, std=0.2)
    return made.eval()


def tokenizer():
    made = make_tokenizer()
    made.pad_token = "<|end|>"
    return made


@pytest.mark.parametrize("is_packed", [True, False])
@pytest.mark.parametrize("text", TEXTS)
def test_a_vector_is_that_of_the_model(
    text: str, *, is_packed: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    if not is_packed:
        monkeypatch.setattr(torch.backends.mkldnn, "is_available", lambda: False)
    whole, reader = model(), tokenizer()
    alone = QuestionEncoder.of(whole, reader, max_tokens=MAX_TOKENS)
    assert alone is not None
    inputs = reader([text], truncation=True, max_length=MAX_TOKENS, return_tensors="pt")
    with torch.inference_mode():
        states = whole(**inputs).last_hidden_state[0]
        expected = torch.nn.functional.normalize(states.mean(0), dim=0).numpy()
    found = alone.embed(text)
    assert found.dtype == np.float32
    assert np.isnan(alone.embed("")).all()  # this tokenizer makes no token of it
    np.testing.assert_allclose(found, expected, atol=1e-5)


def test_the_models_own_tokenizer_may_be_set_otherwise_meanwhile() -> None:
    reader = tokenizer()
    alone = QuestionEncoder.of(model(), reader, max_tokens=MAX_TOKENS)
    assert alone is not None
    before = alone.token_ids("a question of some length")
    reader(["x", "a much longer text than that"], padding=True, truncation=True, max_length=4)
    assert alone.token_ids("a question of some length") == before
    assert len(alone.token_ids("word " * 200)) == MAX_TOKENS


@pytest.mark.parametrize(
    "changes", [{"hidden_act": "relu"}, {"is_decoder": True}, {"max_position_embeddings": 50}]
)
def test_other_berts_are_left_to_themselves(changes: dict[str, object]) -> None:
    assert QuestionEncoder.of(model(**changes), tokenizer(), max_tokens=MAX_TOKENS) is None


def test_other_encoders_and_types_are_left_to_themselves() -> None:
    other = DistilBertModel(DistilBertConfig(vocab_size=272, dim=32, n_heads=4, hidden_dim=64))
    assert QuestionEncoder.of(other, tokenizer(), max_tokens=MAX_TOKENS) is None
    half = model().to(torch.bfloat16)
    assert QuestionEncoder.of(half, tokenizer(), max_tokens=MAX_TOKENS) is None


def test_an_encoder_that_differs_is_given_up(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bert, "TOLERANCE", -1.0)
    assert QuestionEncoder.of(model(), tokenizer(), max_tokens=MAX_TOKENS) is None
