"""Choosing the next token: greedy, or temperature and top-p as transformers defines them."""

from collections.abc import Callable
from typing import TypeAlias

import torch
from transformers import LogitsProcessorList, TemperatureLogitsWarper, TopPLogitsWarper

from centroidkv.config import Sampling

Choose: TypeAlias = Callable[[torch.Tensor], int]

__all__ = ["Choose", "make_chooser", "top_margin"]


def make_chooser(sampling: Sampling, device: torch.device) -> Choose:
    """Return a function from logits, shape [vocabulary], to a token id."""
    if sampling.temperature == 0:
        return lambda logits: int(logits.argmax())
    warpers = LogitsProcessorList([TemperatureLogitsWarper(sampling.temperature)])
    if sampling.top_p < 1:
        warpers.append(TopPLogitsWarper(sampling.top_p))
    generator = torch.Generator(device)
    if sampling.seed is None:
        generator.seed()
    else:
        generator.manual_seed(sampling.seed)
    no_ids = torch.empty((1, 0), dtype=torch.long, device=device)

    def choose(logits: torch.Tensor) -> int:
        warped = warpers(no_ids, logits[None].float())  # type: ignore[arg-type]
        return int(torch.multinomial(warped.softmax(-1), 1, generator=generator))

    return choose


def top_margin(logits: torch.Tensor) -> float:
    """Return how far the best logit leads the second best."""
    best = logits.topk(2).values
    return float(best[0] - best[1])
