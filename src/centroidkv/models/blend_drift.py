"""What all placed KV of a layer lacks alike, estimated by the tokens that are computed again.

Other text in front moves the keys of all tokens of a passage in a common direction, and their
values a little too. The tokens that are computed again show by how much; they were chosen for
moving most, so the others are moved by a part of their mean. That costs a sum over a layer's KV
and no product of matrices.
"""

from dataclasses import dataclass

import torch

from centroidkv.models.free_keys import Placement, Turn

# Of the mean of the tokens that were chosen: measured, see the benchmark of blending.
PART = 0.5

__all__ = ["PART", "Drift"]


@dataclass(frozen=True, slots=True, eq=False)
class Drift:
    """Corrects the placed KV of each layer.

    Attributes:
        placement: Where passages stand.
        rows: Which of the rows that are computed have placed KV, ascending.
        places: Of these in the arena.
        part: Of their mean, what is added to the others.
    """

    placement: Placement
    rows: torch.Tensor
    places: torch.Tensor
    part: float = PART

    def correct(self, layer: int, keys: torch.Tensor, values: torch.Tensor) -> None:
        """Move what is placed in a layer, by its rows' fresh keys and values.

        A passage of which no token was chosen has moved the least, or stands where it was
        computed: it stays. Keys and values have shape [1, kv_heads, rows, dim].
        """
        if not len(self.rows):
            return
        arena = self.placement.arena
        held = arena.keys[layer, 0], arena.values[layer, 0]
        moved = (keys[0][:, self.rows] - held[0][:, self.places]).float()
        free = torch.empty_like(moved)
        bounds = torch.tensor(self.placement.spans, device=self.places.device)
        begin, end = torch.searchsorted(self.places, bounds.T.contiguous()).tolist()
        turns = self.placement.turns(layer)
        for first, last, span, turn in zip(begin, end, self.placement.spans, turns, strict=True):
            own = slice(first, last)
            back = turn.at(self.places[own] - span[0]).back()
            back.apply(moved[:, own], out=free[:, own])
        by_key = self.part * free.mean(1, keepdim=True)
        by_value = values[0][:, self.rows].mean(1, keepdim=True)
        by_value = self.part * (by_value - held[1][:, self.places].mean(1, keepdim=True))
        for first, last, span, turn in zip(begin, end, self.placement.spans, turns, strict=True):
            if first < last:
                self._move(held, span, turn, (by_key, by_value))

    @staticmethod
    def _move(
        held: tuple[torch.Tensor, torch.Tensor],
        span: tuple[int, int],
        turn: Turn,
        by: tuple[torch.Tensor, torch.Tensor],
    ) -> None:
        keys, values = held[0][:, slice(*span)], held[1][:, slice(*span)]
        keys += turn.apply(by[0], out=torch.empty_like(keys))
        values += by[1]
