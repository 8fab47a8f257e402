"""int8 linear layers on the real bundled model: reuse on equals reuse off, and it still answers."""

from collections.abc import Callable

import bank
import pytest
import torch

from centroidkv import Engine
from centroidkv.models.loading import load_model
from centroidkv.models.transformers_model import TransformersModel

CONTEXT = "\n\n".join(d.page_content for d in bank.documents()[:3])
PROMPT = f"Answer from the context.\n\nContext:\n{CONTEXT}\n\nQuestion: "


@pytest.fixture(scope="module")
def int8() -> TransformersModel:
    return load_model("bundled:smollm2", quantization="int8")


def test_reuse_changes_no_answer(
    open_engine: Callable[..., Engine], int8: TransformersModel, smollm: TransformersModel
) -> None:
    assert int8.fingerprint != smollm.fingerprint
    engine = open_engine(model=int8)
    engine.generate(PROMPT + "How long does it take?", max_tokens=2)
    for question in ("What do I need to open an account?", "Can I add my wife?"):
        warm = engine.generate(PROMPT + question, max_tokens=24)
        cold = engine.generate(PROMPT + question, max_tokens=24, reuse="off")
        assert warm.usage.outcome == "hit"
        assert warm.usage.reused_tokens > 300
        same = zip(warm.token_ids, cold.token_ids, cold.margins, strict=False)
        differ = next((margin for one, two, margin in same if one != two), None)
        assert differ is None or differ < 1e-3, "more than a tie"


def test_its_next_token_is_near_that_of_float32(
    int8: TransformersModel, smollm: TransformersModel
) -> None:
    ids = smollm.encode(PROMPT + "What do I need to open an account?").token_ids
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
