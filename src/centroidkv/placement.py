"""What is placed into a prompt when passages are blended: the words of `reuse="blend"`.

Owns the values that the flow and the model exchange. Knows neither.
"""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass

from centroidkv.types import KVBlock

__all__ = ["BlendReport", "PlacedPassage", "fitting"]


@dataclass(frozen=True, slots=True, eq=False)
class PlacedPassage:
    """Where in a prompt a passage's stored KV belongs.

    The tokens [start, stop) are absolute positions of the prompt; `block` has as many tokens, its
    keys are free of positions.
    """

    start: int
    stop: int
    block: KVBlock


@dataclass(frozen=True, slots=True)
class BlendReport:
    """What a blend did.

    Attributes:
        placed_tokens: Tokens that passages brought KV for.
        again_tokens: Of these, how many were computed again, on the average of the layers; where
            there was a check layer, of those from it on.
        new_tokens: Tokens that no passage covered.
        uncorrected: How far the placed KV of the other tokens was from the fresh at the check
            layer, as a part of the fresh (both squared); None where nothing was compared.
    """

    placed_tokens: int
    again_tokens: int
    new_tokens: int
    uncorrected: float | None = None


def fitting(passages: Iterable[PlacedPassage], begin: int, end: int) -> Iterator[PlacedPassage]:
    """Yield passages as they come; all have to stand among the tokens [begin, end), in order.

    Raises:
        ValueError: One does not, or has KV of another number of tokens.
    """
    at = begin
    for passage in passages:
        if not at <= passage.start < passage.stop <= end:
            raise ValueError(
                f"a passage at [{passage.start}, {passage.stop}) does not fit between "
                f"{at} and {end}"
            )
        if (num := passage.block.num_tokens) != passage.stop - passage.start:
            raise ValueError(
                f"a passage at [{passage.start}, {passage.stop}) has KV of {num} tokens"
            )
        at = passage.stop
        yield passage
