"""What is placed into a prompt when passages are blended: the words of `reuse="blend"`.

Owns the values that the flow and the model exchange. Knows neither.
"""

from dataclasses import dataclass

from centroidkv.types import KVBlock

__all__ = ["BlendReport", "PlacedPassage"]


@dataclass(frozen=True, slots=True)
class PlacedPassage:
    """Prompt tokens [start, stop) have the position-free KV `block`.

    Positions are those of the prompt. The keys of `block` are turned back to before RoPE.
    """

    start: int
    stop: int
    block: KVBlock


@dataclass(frozen=True, slots=True)
class BlendReport:
    """What blending did: of the placed tokens, so many were computed again."""

    placed_tokens: int
    recomputed_tokens: int
