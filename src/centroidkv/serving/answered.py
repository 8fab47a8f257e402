"""A request that has been answered, as the value that learning from it takes."""

from dataclasses import dataclass

from centroidkv.kv.blocks import Match
from centroidkv.serving.outcome import Layout
from centroidkv.types import Prompt, Record, Usage

__all__ = ["Answered"]


@dataclass(frozen=True, slots=True)
class Answered:
    """A request that has been answered, as far as learning from it needs.

    `answer` are the tokens decoded; `is_conversation` that the next prompt may continue it. Of a
    blended prompt only the KV of the first `exact_tokens` is that of its tokens alone. The KV of
    the first `sound` tokens of the prompt came from the store or from an earlier arena. What stands
    behind the first `storable_tokens` is personal: neither that nor the answer is stored.
    """

    prompt: Prompt
    answer: tuple[int, ...]
    is_conversation: bool
    record: Record | None
    where: Layout
    usage: Usage
    match: Match
    sound: int
    exact_tokens: int | None = None
    handed_on: int = 0  # leading tokens that the store was given before the answer
    token_bytes: int = 0  # of their KV
    storable_tokens: int | None = None

    @property
    def storable(self) -> Prompt:
        """The part of the prompt that may be stored."""
        ids, offsets = self.prompt.token_ids, self.prompt.offsets
        end = self.storable_tokens
        return self.prompt if end is None else Prompt(self.prompt.text, ids[:end], offsets[:end])
