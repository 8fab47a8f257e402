"""What all placed KV of a layer lacks alike, estimated by the tokens that are computed again.

Other text in front moves the keys of all tokens of a passage in a common direction, and their
values a little too. The tokens that are computed again show by how much; they were chosen for
moving most, so the others are moved by a part of their mean. That costs a sum over a layer's KV
and no product of matrices.
"""

from collections.abc import Callable

import torch

from centroidkv.models.free_keys import Placement

# Of the mean of the tokens that were chosen: measured, see the benchmark of blending.
PART = 0.5

__all__ = ["PART", "Drift"]


class Drift:
    """Corrects the placed KV of each layer.

    A passage of which no token was chosen has moved the least, or stands where it was computed: it
    stays.

    Args:
        placement: Where passages stand.
        rows: Which of the rows that are computed have placed KV, ascending.
        places: Of these in the arena.
        part: Of their mean, what is added to the others.
    """

    def __init__(
        self,
        placement: Placement,
        rows: torch.Tensor,
        places: torch.Tensor,
        part: float = PART,
    ) -> None:
        self._placement, self._rows, self._part = placement, rows, part
        self._places = places - placement.span[0]
        self._moves = self._moving(places)
        self._wide: tuple[torch.Tensor, tuple[torch.Tensor, torch.Tensor]] | None = None

    def _moving(self, places: torch.Tensor) -> torch.Tensor:
        """Return 1 for the tokens of passages that are moved, else 0; [tokens, 1]."""
        first, last = self._placement.span
        moves = torch.zeros(last - first, 1, device=places.device)
        bounds = torch.tensor(self._placement.spans, device=places.device)
        begin, end = torch.searchsorted(places, bounds.T.contiguous())
        for start, stop in bounds[begin < end].tolist():
            moves[start - first : stop - first] = 1
        return moves

    def correct(self, layer: int, keys: torch.Tensor, values: torch.Tensor) -> None:
        """Move what is placed in a layer, by its rows' fresh keys and values.

        Both have shape [1, kv_heads, rows, dim].
        """
        if not len(self._rows):
            return
        held_keys, held_values = self._placement.held(layer)
        turn = self._placement.turn(layer)
        moved = (keys[0][:, self._rows] - held_keys[:, self._places]).float()
        free = turn.at(self._places).back().apply(moved)
        by_key = self._part * free.mean(1, keepdim=True)
        by_value = values[0][:, self._rows].mean(1, keepdim=True)
        by_value = self._part * (by_value - held_values[:, self._places].mean(1, keepdim=True))
        cos, sin = self._factors(turn.cos, turn.wide)
        held_keys.addcmul_(by_key, cos).addcmul_(by_key.roll(by_key.shape[-1] // 2, -1), sin)
        held_values.addcmul_(by_value, self._moves.to(by_value.dtype))

    def _factors(
        self, cos: torch.Tensor, wide: Callable[[], tuple[torch.Tensor, torch.Tensor]]
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Return what turns the passages that are moved; the same in layers that turn alike."""
        if self._wide is None or self._wide[0] is not cos:
            first, second = wide()
            self._wide = cos, (first * self._moves, second * self._moves)
        return self._wide[1]
