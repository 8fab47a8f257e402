"""int8 linear layers on the real bundled model: equal to the bit on the grid, and still good."""

from collections.abc import Callable

import bank
import pytest
import torch

from centroidkv import Engine
from centroidkv.models.loading import load_model
from centroidkv.models.transformers_model import TransformersModel


def _prompt(num_passages: int, question: str) -> str:
    context = "\n\n".join(d.page_content for d in bank.documents()[:num_passages])
    return f"Answer from the context.\n\nContext:\n{context}\n\nQuestion: {question}"


@pytest.fixture(scope="module")
def int8() -> TransformersModel:
    return load_model("bundled:smollm2", quantization="int8")


def test_reuse_changes_no_bit_in_bitwise_mode(
    open_engine: Callable[..., Engine], int8: TransformersModel, smollm: TransformersModel
) -> None:
    assert int8.fingerprint != smollm.fingerprint
    engine = open_engine(model=int8, bitwise=True)
    engine.generate(_prompt(4, "How long does it take?"), max_tokens=2)
    for question in ("What do I need to open an account?", "Can I add my wife?"):
        warm = engine.generate(_prompt(4, question), max_tokens=24)
        cold = engine.generate(_prompt(4, question), max_tokens=24, reuse="off")
        assert warm.usage.reused_tokens == 512
        assert (warm.token_ids, warm.margins) == (cold.token_ids, cold.margins)


def test_a_hit_is_one_without_bitwise_mode_too(
    open_engine: Callable[..., Engine], int8: TransformersModel
) -> None:
    engine = open_engine(model=int8)
    engine.generate(_prompt(4, "How long does it take?"), max_tokens=2)
    usage = engine.generate(_prompt(4, "Can I add my wife?"), max_tokens=2).usage
    assert (usage.outcome, usage.reused_tokens > 500) == ("hit", True)


def test_its_next_token_is_near_that_of_float32(
    int8: TransformersModel, smollm: TransformersModel
) -> None:
    ids = smollm.encode(_prompt(3, "What do I need to open an account?")).token_ids
    expected = []
    for model in (smollm, int8):
        sequence = model.open_sequence(len(ids) + 1)
        sequence.prefill(ids)
        expected.append(sequence.logits.float().log_softmax(-1))
        sequence.close()
    float32, ours = expected
    assert int(ours.argmax()) == int(float32.argmax())
    # On the example bank's answers the mean is 0.03.
    assert float(torch.nn.functional.kl_div(ours, float32, reduction="sum", log_target=True)) < 0.2
