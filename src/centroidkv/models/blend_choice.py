"""Which tokens of placed passages are computed again: those whose KV turns out most different.

Owns the choice alone. The check layer's keys and values are computed for all tokens; how far they
are from the placed ones says which tokens depend most on what now stands before them (J. Yao et
al., "CacheBlend", EuroSys 2025, section 4.3; there the most deviating 15 % or so).
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Literal

import torch

from centroidkv.models.blend_rows import Fresh

__all__ = ["SHARE", "Deviation", "Recipe", "attention_received", "chosen", "deviation"]

CHECK_LAYER = 1
# Of the placed tokens, how many are computed again.
SHARE = 0.15
# Of the square sum of fresh values at the check layer, what may be left as placed where no share is
# given. On prompts of 1,700 tokens of the bundled model, 15 % leave about as much.
AUTO_BOUND = 2e-4
# From which part of a model's layers on, how many times the share: 1 on the average. Errors of the
# first layers go through all others.
_STAGES = ((0.0, 1.8), (0.12, 1.4), (0.26, 1.1), (0.46, 0.85), (0.66, 0.63))
# Added to attention relative to its mean: what the check layer does not look at may matter later.
_LEAST_ATTENTION = 0.1
# Rows that are asked what they look at, the last ones: scores take memory for each of them.
_MOST_ASKING = 256


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
        asked: By which power of the attention that what follows the passages pays to a token its
            deviation counts for more; 0 for none.
    """

    share: float | None = SHARE
    check_layer: int = CHECK_LAYER
    by: Literal["keys", "values"] = "values"
    later: tuple[tuple[int, float], ...] = ()
    bound: float = AUTO_BOUND
    asked: float = 0.5

    @classmethod
    def graded(cls, share: float | None, num_layers: int) -> "Recipe":
        """Return the recipe of a share on the average of a model's layers, more in the first.

        Where that would be more than all, the later layers have it. No share is none anywhere.
        """
        layers = range(CHECK_LAYER, num_layers)
        if not share or share >= 1 or not layers:
            return cls(share)
        times = [[t for b, t in _STAGES if round(b * num_layers) <= n][-1] for n in layers]
        shares = _spread(share, times)
        changes = zip(layers[1:], shares[1:], shares, strict=False)
        later = tuple((n, here) for n, here, before in changes if here != before)
        return cls(shares[0], later=later)


def _spread(share: float, times: Sequence[float]) -> list[float]:
    """Return shares in proportion to `times` whose mean is `share`, none of them above 1."""
    shares = [0.0] * len(times)
    rest = list(range(len(times)))
    while rest:
        left = share * len(times) - (len(times) - len(rest))
        scale = left / sum(times[n] for n in rest)
        done = [n for n in rest if scale * times[n] > 1] or rest
        for n in done:
            shares[n] = min(1.0, scale * times[n])
        rest = [n for n in rest if n not in done]
    return shares


@dataclass(frozen=True, slots=True, eq=False)
class Deviation:
    """How far fresh KV is from the placed, squared, by token [tokens]; `size` of the fresh.

    Tokens are chosen by `weights` of it, [tokens], all alike where there are none.
    """

    squares: torch.Tensor
    size: float
    weights: torch.Tensor | None = None

    def weighed(self, received: torch.Tensor, power: float) -> "Deviation":
        """Let tokens count for more that much attention is paid to, [tokens]."""
        relative = received / received.mean() + _LEAST_ATTENTION
        return replace(self, weights=relative**power)

    def without(self, corrected: torch.Tensor) -> float:
        """Return the part of the size that stays when tokens at these places are corrected."""
        left = float(self.squares.sum() - self.squares[corrected].sum())
        return left / self.size if self.size else 0.0


def deviation(fresh: torch.Tensor, placed: torch.Tensor) -> Deviation:
    """Compare the KV of tokens, both [1, kv_heads, tokens, dim]."""
    fresh = fresh.float()
    squares = (fresh - placed.float()).square().sum((0, 1, 3))
    return Deviation(squares, float(fresh.square().sum()))


def attention_received(fresh: Fresh, tokens: torch.Tensor, asking: slice) -> torch.Tensor:
    """Return the attention that some rows pay to tokens among themselves, mean of all heads.

    Args:
        fresh: Of all rows.
        tokens: Which rows are looked at, [tokens].
        asking: The rows that look, all behind `tokens`; of many, the last ones do.

    Returns:
        Shares that sum to 1, [tokens]; all alike where no row looks.
    """
    query = fresh.query[0, :, asking][:, -_MOST_ASKING:].float()
    keys = fresh.keys[0][:, tokens].float()
    if not query.shape[1]:
        return torch.full((len(tokens),), 1 / len(tokens), device=tokens.device)
    groups = query.shape[0] // keys.shape[0]
    stacked = query.reshape(keys.shape[0], groups * query.shape[1], -1)
    shares: torch.Tensor = (stacked @ keys.mT * fresh.scale).softmax(-1).mean((0, 1))
    return shares


def chosen(found: Deviation, share: float | None, bound: float, of: int) -> torch.Tensor:
    """Return the places of the tokens to compute again, ascending.

    Args:
        found: Of the tokens that may be chosen.
        share: Of `of` tokens; None for as few as leave less than `bound` of the size.
        bound: See `share`.
        of: How many tokens were placed.
    """
    squares = found.squares
    scores = squares if found.weights is None else squares * found.weights
    if share is not None:
        num = min(round(share * of), len(squares))
    else:
        ordered = squares[scores.argsort(descending=True)]
        left = ordered.flip(0).cumsum(0).flip(0)  # by how many are computed again
        num = int((left > bound * found.size).sum())
    places: torch.Tensor = scores.topk(num).indices.sort().values
    return places
