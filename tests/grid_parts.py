"""A model in bitwise mode that notes the logits of every token it decodes; it really runs."""

from collections.abc import Iterator, Sequence

import torch

from centroidkv.config import Sampling
from centroidkv.models.grid import GridModel, GridSequence
from centroidkv.protocols import CausalModel
from centroidkv.types import Token


class NotingModel(GridModel):
    """Keeps the logits of its latest answer in `noted`, one row [vocabulary] a token."""

    def __init__(self, model: CausalModel) -> None:
        super().__init__(model)
        self.noted: list[torch.Tensor] = []

    def open_sequence(
        self, capacity: int, prompt: Sequence[int] = (), *, namespace: str = ""
    ) -> GridSequence:
        self.noted = noted = []
        sequence = super().open_sequence(capacity, prompt, namespace=namespace)
        decoding = sequence.decode

        def decode(sampling: Sampling) -> Iterator[Token]:
            for token in decoding(sampling):
                noted.append(sequence.logits.clone())
                yield token

        sequence.decode = decode
        return sequence


def are_same_bits(one: Sequence[torch.Tensor], other: Sequence[torch.Tensor]) -> bool:
    """Tell whether two answers were chosen from the very same logits."""
    return len(one) == len(other) and all(map(torch.equal, one, other))
