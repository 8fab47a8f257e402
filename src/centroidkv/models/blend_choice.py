"""Which tokens of placed passages are computed again: those whose KV turns out most different.

Owns the choice alone. The check layer's keys and values are computed for all tokens; how far they
are from the placed ones says which tokens depend most on what now stands before them (J. Yao et
al., "CacheBlend", EuroSys 2025, section 4.3; there the most deviating 15 % or so).
"""

from dataclasses import dataclass
from typing import Literal

import torch

from centroidkv.models.blend_drift import PART

__all__ = ["SHARE", "Deviation", "Recipe", "chosen", "deviation"]

# Of the placed tokens, how many are computed again.
SHARE = 0.15
# Of the placed values' square sum, what may be left uncorrected where the share is `auto`.
AUTO_BOUND = 0.02


@dataclass(frozen=True, slots=True)
class Recipe:
    """How tokens are chosen.

    Attributes:
        share: Of the placed tokens, how many are computed again; None for as few as leave less
            than `bound` of the deviation that would matter.
        check_layer: All tokens are computed in the layers before it, and its keys and values.
        by: Whether keys or values are compared.
        later: Layers at which fewer are chosen again of those still computed, and the share of
            the placed tokens that stays.
        bound: For a share of None.
        drift: How much of the mean change of the tokens computed again is added to the others.
    """

    share: float | None = SHARE
    check_layer: int = 1
    by: Literal["keys", "values"] = "values"
    later: tuple[tuple[int, float], ...] = ()
    bound: float = AUTO_BOUND
    drift: float = PART


@dataclass(frozen=True, slots=True, eq=False)
class Deviation:
    """How far fresh KV is from the placed, squared, by token [tokens]; `size` of the fresh."""

    squares: torch.Tensor
    size: float

    def without(self, corrected: torch.Tensor) -> float:
        """Return the part of the size that stays when tokens at these places are corrected."""
        left = float(self.squares.sum() - self.squares[corrected].sum())
        return left / self.size if self.size else 0.0


def deviation(fresh: torch.Tensor, placed: torch.Tensor) -> Deviation:
    """Compare the KV of tokens, both [1, kv_heads, tokens, dim]."""
    fresh = fresh.float()
    squares = (fresh - placed.float()).square().sum((0, 1, 3))
    return Deviation(squares, float(fresh.square().sum()))


def chosen(found: Deviation, share: float | None, bound: float, of: int) -> torch.Tensor:
    """Return the places of the tokens to compute again, ascending.

    Args:
        found: Of the tokens that may be chosen.
        share: Of `of` tokens; None for as few as leave less than `bound` of the size.
        bound: See `share`.
        of: How many tokens were placed.
    """
    squares = found.squares
    if share is not None:
        num = min(round(share * of), len(squares))
    else:
        ordered = squares.sort(descending=True).values
        left = ordered.sum() - ordered.cumsum(0)
        num = int((left > bound * found.size).sum()) + 1 if float(squares.sum()) else 0
        num = min(num, len(squares))
    places: torch.Tensor = squares.topk(num).indices.sort().values
    return places
