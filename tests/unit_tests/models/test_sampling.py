"""Greedy is the argmax, and sampling is what transformers does."""

import pytest
import torch

from centroidkv.config import Sampling
from centroidkv.models.sampling import make_chooser, top_margin

CPU = torch.device("cpu")
LOGITS = torch.randn(50, generator=torch.Generator().manual_seed(0)) * 3


def draw(count: int = 200, logits: torch.Tensor = LOGITS, **options: object) -> list[int]:
    choose = make_chooser(Sampling(**options), CPU)  # type: ignore[arg-type]
    return [choose(logits) for _ in range(count)]


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
def test_greedy_is_the_argmax(dtype: torch.dtype) -> None:
    logits = LOGITS.to(dtype)
    assert draw(3, logits) == [int(logits.argmax())] * 3


def test_greedy_needs_no_seed_and_ignores_top_p() -> None:
    assert set(draw(5, top_p=0.1, seed=1)) == set(draw(5, seed=2)) == {int(LOGITS.argmax())}


def test_sampling_with_a_seed_repeats() -> None:
    assert draw(temperature=1.0, seed=7) == draw(temperature=1.0, seed=7)
    assert draw(temperature=1.0, seed=7) != draw(temperature=1.0, seed=8)


def test_sampling_without_a_seed_does_not_repeat() -> None:
    assert draw(temperature=2.0) != draw(temperature=2.0)


def test_sampling_leaves_torchs_own_randomness_alone() -> None:
    torch.manual_seed(3)
    expected = torch.rand(3)
    torch.manual_seed(3)
    draw(temperature=1.0, seed=7)
    assert torch.equal(torch.rand(3), expected)


@pytest.mark.parametrize("temperature", [0.5, 1.0, 2.0])
def test_tokens_come_as_often_as_the_softmax_says(temperature: float) -> None:
    drawn = torch.tensor(draw(4000, temperature=temperature, seed=0))
    expected = (LOGITS / temperature).softmax(-1)
    shares = torch.bincount(drawn, minlength=50) / 4000
    assert float((shares - expected).abs().max()) < 0.03


def test_top_p_keeps_the_fewest_tokens_that_reach_it() -> None:
    probabilities = torch.tensor([0.5, 0.3, 0.15, 0.05])
    assert set(draw(300, probabilities.log(), temperature=1.0, top_p=0.75, seed=0)) == {0, 1}
    assert set(draw(300, probabilities.log(), temperature=1.0, top_p=0.01, seed=0)) == {0}
    assert set(draw(600, probabilities.log(), temperature=1.0, top_p=1.0, seed=0)) == {0, 1, 2, 3}


def test_the_logits_are_left_as_they_are() -> None:
    before = LOGITS.clone()
    draw(3, temperature=0.7, top_p=0.5, seed=0)
    assert torch.equal(LOGITS, before)


def test_the_margin_is_the_lead_over_the_second_best() -> None:
    assert top_margin(torch.tensor([1.0, 4.0, 3.5])) == 0.5
    assert top_margin(torch.tensor([2.0, 2.0])) == 0.0
