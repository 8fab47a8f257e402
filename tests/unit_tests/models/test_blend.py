"""Blended prefills: equal to a plain one where all is computed, and to the method where not."""

from dataclasses import replace

import pytest
import torch
from transformers import PreTrainedTokenizerFast

from centroidkv.config import Sampling
from centroidkv.models.attention import use_shared_kv_heads
from centroidkv.models.blend import BlendReport
from centroidkv.models.blend_choice import Recipe
from centroidkv.models.free_keys import PlacedPassage, free_block
from centroidkv.models.loading import wrap_model
from centroidkv.models.transformers_model import TransformersModel
from centroidkv.types import KVBlock
from small_parts import make_llama

HEAD = [5, 9, 2, 77, 31]
ONE, TWO = [(11 * i + 3) % 256 for i in range(90)], [(17 * i + 8) % 256 for i in range(70)]
END = [40, 41, 42, 43, 44, 45]
PROMPT = [*HEAD, *TWO, 1, 2, *ONE, *END]


@pytest.fixture(scope="module")
def model(tokenizer: PreTrainedTokenizerFast) -> TransformersModel:
    llama = make_llama()
    with torch.no_grad():
        for weight in llama.model.parameters():
            if weight.ndim > 1:
                weight.mul_(4)  # so that contexts matter
    use_shared_kv_heads(llama)
    return wrap_model(llama, tokenizer)


def passage_kv(model: TransformersModel, passage: list[int]) -> KVBlock:
    """Return a passage's KV behind the head, free of positions."""
    sequence = model.open_sequence(len(HEAD) + len(passage))
    sequence.prefill([*HEAD, *passage])
    block = sequence.snapshot(len(HEAD), sequence.num_tokens)
    sequence.close()
    assert model.rotary is not None
    return free_block(block, model.rotary, len(HEAD))


@pytest.fixture(scope="module")
def passages(model: TransformersModel) -> list[PlacedPassage]:
    """The two passages in the order in which they were not computed."""
    first, second = len(HEAD), len(HEAD) + len(TWO) + 2
    return [
        PlacedPassage(first, first + len(TWO), passage_kv(model, TWO)),
        PlacedPassage(second, second + len(ONE), passage_kv(model, ONE)),
    ]


def plain(model: TransformersModel, prompt: list[int] = PROMPT) -> torch.Tensor:
    sequence = model.open_sequence(len(prompt))
    sequence.prefill(prompt)
    logits = sequence.logits.clone()
    sequence.close()
    return logits


@pytest.mark.parametrize("held", [0, 3, 5])
@pytest.mark.parametrize("share", [1.0, None])
def test_all_that_differs_computed_again_is_a_prefill(
    model: TransformersModel, passages: list[PlacedPassage], held: int, share: float | None
) -> None:
    sequence = model.open_sequence(len(PROMPT) + 4)
    if held:
        sequence.prefill(PROMPT[:held])
    recipe = Recipe(share, bound=0)
    done = model.blender.run(sequence._open, PROMPT[held:], passages, recipe)
    # The passage right behind its own head is what it was there.
    expected = BlendReport(160, 160 if share else len(ONE), len(PROMPT) - held - 160, 0.0)
    assert replace(done.report, uncorrected=0.0) == expected
    assert (done.logits[0] - plain(model)).abs().max() < 1e-4
    sequence.close()


def test_without_passages_it_is_a_prefill(model: TransformersModel) -> None:
    sequence, other = (model.open_sequence(len(PROMPT) + 8) for _ in range(2))
    report = sequence.blend(PROMPT, [])
    other.prefill(PROMPT)
    assert (report.placed_tokens, report.new_tokens) == (0, len(PROMPT))
    assert (sequence.logits - other.logits).abs().max() < 1e-4
    some = Sampling(max_tokens=8)
    assert [t.id for t in sequence.decode(some)] == [t.id for t in other.decode(some)]
    for each in (sequence, other):
        each.close()
