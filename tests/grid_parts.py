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
    ) -> "NotingSequence":
        self.noted = []
        sequence = self.model.open_sequence(capacity, prompt, namespace=namespace)
        return NotingSequence(sequence, num_threads=self.num_threads).noting(self.noted)


class NotingSequence(GridSequence):
    """A sequence that writes the logits a token was chosen from into a list."""

    def noting(self, noted: list[torch.Tensor]) -> "NotingSequence":
        self.noted = noted
        return self

    def decode(self, sampling: Sampling) -> Iterator[Token]:
        for token in super().decode(sampling):
            self.noted.append(self.logits.clone())
            yield token


def are_same_bits(one: Sequence[torch.Tensor], other: Sequence[torch.Tensor]) -> bool:
    """Tell whether two answers were chosen from the very same logits."""
    return len(one) == len(other) and all(map(torch.equal, one, other))
