"""Bitwise mode with the real bundled model: every logit of every token, reuse on and off."""

from collections.abc import Callable

import bank
import pytest
import torch

from centroidkv import Completion, Engine
from centroidkv.config import Sampling
from centroidkv.models.grid import GRID_TOKENS, GridModel
from centroidkv.models.loading import load_model
from centroidkv.models.transformers_model import TransformersModel
from grid_parts import NotingModel, are_same_bits

PASSAGES = [d.page_content for d in bank.documents()[:8]]
QUESTIONS = ["How long does it take?", "Can I add my wife to my account?"]


@pytest.fixture(scope="module", params=["float32", "bfloat16"])
def noting(request: pytest.FixtureRequest, smollm: TransformersModel) -> NotingModel:
    is_float = request.param == "float32"
    return NotingModel(smollm if is_float else load_model("bundled:smollm2", dtype="bfloat16"))


def ask(
    engine: Engine, question: str, num_passages: int, reuse: str
) -> tuple[list[torch.Tensor], Completion]:
    assert isinstance(engine.model, NotingModel)
    prompt = bank.PROMPT.format(context="\n\n".join(PASSAGES[:num_passages]), question=question)
    done = engine.generate(prompt, question=question, max_tokens=8, reuse=reuse)
    return engine.model.noted, done


@pytest.mark.parametrize("num_passages", [2, 5])
def test_answers_are_equal_to_the_bit_from_an_arena_from_memory_and_from_disk(
    open_engine: Callable[..., Engine], noting: NotingModel, num_passages: int
) -> None:
    engine = open_engine(model=noting, bitwise=True)
    ask(engine, QUESTIONS[0], num_passages, "exact")
    expected = {}
    for question in QUESTIONS[1:]:
        found, warm = ask(engine, question, num_passages, "exact")
        assert warm.usage.tier == "memory"
        assert warm.usage.reused_tokens >= GRID_TOKENS
        expected[question], cold = ask(engine, question, num_passages, "off")
        assert are_same_bits(found, expected[question])
        assert (warm.token_ids, warm.margins) == (cold.token_ids, cold.margins)
    engine.close()
    other = open_engine(model=noting, bitwise=True)
    for question, logits in expected.items():
        found, loaded = ask(other, question, num_passages, "exact")
        assert loaded.usage.reused_tokens >= GRID_TOKENS
        assert are_same_bits(found, logits)
    assert other.check().is_clean


@pytest.mark.parametrize("length", [257, 512, 700])
def test_lengths_about_the_grid_change_no_bit(noting: NotingModel, length: int) -> None:
    """The chunks are those of another prompt, in an arena of another size."""
    grid = GridModel(noting.model)
    ids = grid.encode("\n\n".join(PASSAGES)).token_ids
    prompt, end = ids[:length], (length - 1) // GRID_TOKENS * GRID_TOKENS
    cold = grid.open_sequence(length + 8)
    other = grid.open_sequence(length + 300)
    cold.prefill(prompt)
    other.prefill((*ids[:end], *ids[100:200]))
    warm = grid.open_sequence(length + 300)
    warm.restore([other.snapshot(0, end)])
    assert warm.num_tokens == end
    warm.prefill(prompt[end:])
    decoded = zip(*(s.decode(Sampling(max_tokens=4)) for s in (warm, cold)), strict=True)
    for one, two in decoded:
        assert one == two
        assert torch.equal(warm.logits, cold.logits)
    for sequence in (cold, other, warm):
        sequence.close()
