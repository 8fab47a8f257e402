"""Some rows of a prompt run through a model's own layers, with the KV of all other rows in place.

Owns what a layer sees: new keys and values are written over the arena's rows, and each row attends
to everything before its own position, however scattered the rows are. A kernel's `causal=True`
would take scattered rows for the last ones and let them see what comes after them, so masks are
made from positions. Nothing is known here of why rows are run.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias

import torch

from centroidkv.models.arena import Arena
from centroidkv.models.lending import SequenceKV, own_part
from centroidkv.models.packed import (
    NotPackable,
    attend_part,
    attention_paid,
    by_kv_head,
    known_layer,
    merge_part,
)

KV: TypeAlias = tuple[torch.Tensor, torch.Tensor]

# Rows that attend together to what all of them see, without a mask: more go faster.
_WIDE = 256
# Rows that attend together to the rest: fewer leave out more of what none of them may see.
_GROUP = 64
# Fewer tokens are not worth a run of their own.
_LEAST_SEEN = 128
# Numbers of masks that are kept for the next layer: they grow with the square of a prompt.
_MOST_KEPT = 1 << 24
# Rows that are asked what they look at: the last ones. A question is seldom longer, and before it
# may stand what is no part of it.
_MOST_ASKING = 64

__all__ = ["Fresh", "Rows", "fresh_of"]


@dataclass(frozen=True, slots=True)
class _Tile:
    """The rows [start, stop) attend to the places [first, end) of the arena.

    It `opens` where these rows have attended to nothing yet.
    """

    start: int
    stop: int
    first: int
    end: int
    is_masked: bool
    opens: bool


class Fresh(Exception):
    """What a layer made of its rows before they attend; no more of it is run.

    Attributes:
        keys: [1, kv_heads, rows, dim].
        values: [1, kv_heads, rows, value_dim].
    """

    def __init__(self, kv: KV) -> None:
        super().__init__("a layer's keys and values")
        self.keys, self.values = kv


class _Peek:
    """A cache that takes the first keys and values it is given, and leaves."""

    is_compileable = False

    def update(self, keys: torch.Tensor, values: torch.Tensor, *_: Any, **__: Any) -> KV:
        raise Fresh((keys, values))

    def get_seq_length(self, *_: Any) -> int:
        return 0


def fresh_of(layer: torch.nn.Module, hidden: torch.Tensor, **options: Any) -> Fresh:
    """Compute keys and values of a layer, by whatever norms and projections it has.

    Raises:
        NotPackable: The layer keeps no KV.
    """
    try:
        layer(hidden, past_key_values=_Peek(), use_cache=True, **options)
    except Fresh as fresh:
        return fresh
    raise NotPackable("a layer without KV of its own")


class Rows:
    """The rows of a prompt that a layer runs, and a cache as transformers wants one.

    Args:
        kv: The sequence's KV; room for all positions.
        positions: Of the rows, ascending, [rows].

    Attributes:
        own: The arena that the rows are written to; its token 0 stands at position `origin`.
        places: Of the rows in it, [rows].
        watched: Attention summed over all layers, heads and rows that pay it, [places].
    """

    is_compileable = False

    def __init__(self, kv: SequenceKV, positions: torch.Tensor) -> None:
        self._lender = None if isinstance(kv, Arena) else kv.lender
        self.own, self.origin = own_part(kv)
        self.places = positions - self.origin
        self._tiles = _tiles(self.places.tolist())
        self._masks: dict[_Tile, torch.Tensor] = {}
        self._room = _MOST_KEPT
        self.watched = torch.zeros(0)
        self._watch: tuple[slice, slice] | None = None

    def watch(self, places: slice, asking: slice) -> None:
        """Note in `watched` how much attention some rows pay to the places before all of them.

        Args:
            places: Of the arena.
            asking: Which of the rows pay it; of many, the last ones count.
        """
        start, stop, _ = asking.indices(len(self.places))
        self._watch = places, slice(max(start, stop - _MOST_ASKING), stop)
        num = places.stop - places.start
        self.watched = torch.zeros(num, dtype=torch.float32, device=self.places.device)

    # what transformers asks of a cache

    def update(
        self, keys: torch.Tensor, values: torch.Tensor, layer: int, *_: Any, **__: Any
    ) -> KV:
        """Write the rows' new keys and values, [1, kv_heads, rows, dim], over the arena's."""
        self.own.keys[layer].index_copy_(2, self.places, keys)
        self.own.values[layer].index_copy_(2, self.places, values)
        return keys, values

    def get_seq_length(self, *_: Any) -> int:
        return 0

    # what the attention function does with it

    def attend(
        self, module: torch.nn.Module, query: torch.Tensor, **options: Any
    ) -> tuple[torch.Tensor, None]:
        """Attend for all rows; query [1, heads, rows, dim], result [1, rows, heads, dim].

        Raises:
            NotPackable: The layer does something that is not known here.
        """
        layer = known_layer(module, options)
        keys, values = self.own.keys[layer], self.own.values[layer]
        rows = by_kv_head(query, keys.shape[1])
        scale = options.get("scaling")
        num, kv_heads, groups, _ = rows.shape
        # In memory as parts are, so that both are read in one order.
        output = rows.new_empty(kv_heads, num, groups, values.shape[-1]).transpose(0, 1)
        total = torch.empty(kv_heads, num, groups, device=rows.device).transpose(0, 1)
        for tile in self._tiles:
            mask = self._mask(tile, groups, keys.dtype) if tile.is_masked else None
            own, seen = slice(tile.start, tile.stop), slice(tile.first, tile.end)
            part, lse = attend_part(rows[own], keys[:, :, seen], values[:, :, seen], mask, scale)
            if tile.opens:
                output[own], total[own] = part, lse
            else:
                merge_part(output[own], total[own], part, lse)
        if self._lender is not None:
            lent = self._lender.keys[layer][:, :, : self.origin]
            lent_values = self._lender.values[layer][:, :, : self.origin]
            merge_part(output, total, *attend_part(rows, lent, lent_values, None, scale))
        if self._watch is not None:
            seen, asking = self._watch
            self.watched += attention_paid(rows[asking], total[asking], keys[:, :, seen], scale)
        return output.reshape(1, query.shape[2], query.shape[1], -1), None

    def _mask(self, tile: _Tile, groups: int, dtype: torch.dtype) -> torch.Tensor:
        """Return what a tile's rows see, [rows * groups, tokens]; the same in every layer."""
        kept = self._masks.get(tile)
        if kept is not None:
            return kept
        places = self.places[tile.start : tile.stop]
        is_later = torch.arange(tile.first, tile.end, device=places.device) > places[:, None]
        mask = torch.zeros(is_later.shape, dtype=dtype, device=places.device)
        mask = mask.masked_fill_(is_later, float("-inf")).repeat_interleave(groups, 0)
        if mask.numel() <= self._room:
            self._room -= mask.numel()
            self._masks[tile] = mask
        return mask


def _tiles(places: Sequence[int]) -> list[_Tile]:
    """Cut what rows at ascending places attend to into tiles.

    Before the first of some rows stands what all of them see. Only behind it do they differ; there
    each row sees that first one at least.
    """
    tiles: list[_Tile] = []
    for start in range(0, len(places), _WIDE):
        stop = min(start + _WIDE, len(places))
        seen = places[start] if places[start] >= _LEAST_SEEN else 0
        if seen:
            tiles.append(_Tile(start, stop, 0, seen, is_masked=False, opens=True))
        for own in range(start, stop, _GROUP):
            end = min(own + _GROUP, stop)
            first, opens = seen, not seen
            if places[own] - first >= _LEAST_SEEN:
                tiles.append(_Tile(own, end, first, places[own], is_masked=False, opens=opens))
                first, opens = places[own], False
            held = places[end - 1] + 1
            tiles.append(_Tile(own, end, first, held, is_masked=True, opens=opens))
    return tiles
