"""Passages' KV at positions where it was not computed, with the tokens that matter computed again.

The flow of a blended prefill, layer by layer (J. Yao et al., "CacheBlend: Fast Large Language
Model Serving for RAG with Cached Knowledge Fusion", EuroSys 2025). Tokens that no passage covers
are always computed: alone at first, to see which of the placed ones they look at, and then with
these (S. Wang et al., "ProphetKV", arXiv:2602.02579). The model's own layers do all the work; what
they are given as a cache is `blend_rows.Rows`. Knows nothing of prompts, stores or whether a model
is fit for it.
"""

import math
import threading
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from transformers import PreTrainedModel

from centroidkv.models.arena import input_device
from centroidkv.models.blend_choice import ASKED_LAYERS, Recipe, chosen, deviation
from centroidkv.models.blend_rows import Rows, fresh_of
from centroidkv.models.free_keys import Placement
from centroidkv.models.lending import SequenceKV
from centroidkv.models.packed import KEYWORD, NotPackable
from centroidkv.placement import BlendReport, PlacedPassage
from centroidkv.rotary import Rotary

__all__ = ["BlendReport", "Blended", "Blender"]


@dataclass(frozen=True, slots=True, eq=False)
class Blended:
    """The logits behind the last tokens, [rows, vocabulary], and what was done for them."""

    logits: torch.Tensor
    report: BlendReport


class Blender:
    """Runs blended prefills of one model, one at a time: side by side none would end sooner."""

    def __init__(self, model: PreTrainedModel, rotary: Rotary) -> None:
        body: Any = model
        self._body: Any = body.get_decoder()
        self._head: Any = body.get_output_embeddings()
        self._rotary = rotary
        self._turn = threading.Lock()
        self._device = input_device(model)

    def run(
        self,
        kv: SequenceKV,
        token_ids: Sequence[int],
        passages: Iterable[PlacedPassage],
        recipe: Recipe,
        *,
        rows: int = 1,
    ) -> Blended:
        """Give a prompt's tokens behind what `kv` holds their KV; the last `rows` their logits.

        Args:
            kv: Holds the KV of the prompt's first tokens, of none or more.
            token_ids: All that follow.
            passages: Ascending, behind the tokens that `kv` holds. Each is written to its place
                before the next is asked for.
            recipe: Which of the placed tokens are computed again.
            rows: Of how many tokens logits are wanted, all behind the last passage.

        Raises:
            ValueError: The passages do not fit the tokens, each other or their KV.
            NotPackable: The model's layers are none of those that are understood.
        """
        begin, end = kv.num_tokens, kv.num_tokens + len(token_ids)
        with torch.inference_mode():
            try:
                placement = Placement(kv, self._rotary, passages, end)  # others may run meanwhile
                with self._turn:
                    walk = self._begin(kv, token_ids, placement.spans, rows)
                    blended = self._run(walk, placement, recipe, rows)
            except BaseException:
                kv.resize(begin)
                raise
            kv.resize(end)
        return blended

    def _run(self, walk: "_Walk", placement: Placement, recipe: Recipe, rows: int) -> Blended:
        placed, new = walk.num_placed, len(walk.positions) - walk.num_placed
        recipe = recipe.fit(placed, new)
        if recipe.attention:
            walk.attended = self._attended(walk, placement)
        checks: dict[int, float | None] = {}  # by layer
        if recipe.check:
            check_layer = min(recipe.check_layer, len(self._body.layers) - 1)
            checks = {check_layer: recipe.share, **dict(recipe.later)}
        else:
            walk = walk.most_attended(recipe.share or 0.0)
        first = min(checks, default=0)  # before it, all tokens are computed
        uncorrected, again = None, 0
        for number, layer in enumerate(self._body.layers):
            placement.turn(number)
            if number in checks:
                walk, left = walk.most_different(layer, number, recipe, checks[number])
                uncorrected = left if uncorrected is None else uncorrected
            walk.run(layer)
            if number >= first:
                again += len(walk.positions) - new
        logits: torch.Tensor = self._head(self._body.norm(walk.hidden[:, -rows:]))[0]
        again = round(again / (len(self._body.layers) - first))
        return Blended(logits, BlendReport(placed, again, new, uncorrected))

    def _attended(self, walk: "_Walk", placement: Placement) -> torch.Tensor:
        """Run what no passage covers alone; return how much its end looks at each row, [rows].

        Not through all layers: what the last ones look at changes the choice little.
        """
        here = walk.is_placed.nonzero()[:, 0]
        seen = slice(int(here[0]), int(here[-1]) + 1)
        asking = walk.only(~walk.is_placed)
        stop = len(asking.positions) - walk.num_answered
        start = len(asking.positions) - (len(walk.positions) - seen.stop)
        begin = int(walk.rows.places[0])  # of rows that are still all there, one behind another
        asking.rows.watch(slice(begin + seen.start, begin + seen.stop), slice(start, stop))
        layers = self._body.layers
        for number, layer in enumerate(layers[: math.ceil(ASKED_LAYERS * len(layers))]):
            placement.turn(number)
            asking.run(layer)
        attended = torch.zeros(len(walk.positions), device=self._device)
        attended[seen] = asking.rows.watched
        return attended

    def _begin(
        self,
        kv: SequenceKV,
        token_ids: Sequence[int],
        spans: Sequence[tuple[int, int]],
        rows: int,
    ) -> "_Walk":
        begin = kv.num_tokens
        ids = torch.tensor([list(token_ids)], device=self._device)
        hidden = self._body.get_input_embeddings()(ids)
        positions = torch.arange(begin, begin + len(token_ids), device=self._device)
        is_placed = torch.zeros_like(positions, dtype=torch.bool)
        for start, stop in spans:
            is_placed[start - begin : stop - begin] = True
        is_placed[-rows:] = False  # their logits are wanted
        turns = self._body.rotary_emb(hidden, position_ids=positions[None])
        return _Walk(
            kv,
            positions,
            is_placed,
            hidden,
            turns,
            num_placed=int(is_placed.sum()),
            num_answered=rows - 1,
        )


@dataclass(slots=True, eq=False)
class _Walk:
    """The rows of one blend on their way through the layers."""

    kv: SequenceKV
    positions: torch.Tensor  # of the rows still computed, [rows]
    is_placed: torch.Tensor  # which of these have placed KV, [rows]
    hidden: torch.Tensor  # [1, rows, hidden_size]
    turns: tuple[torch.Tensor, torch.Tensor]  # cosines and sines, [1, rows, key_dim]
    num_placed: int
    num_answered: int  # rows at the end that are not the prompt's
    attended: torch.Tensor | None = None  # how much of the question's attention each has, [rows]
    rows: Rows = field(init=False)

    def __post_init__(self) -> None:
        self.rows = Rows(self.kv, self.positions)

    def only(self, is_kept: torch.Tensor) -> "_Walk":
        """Return a walk that goes on with some of the rows; `is_kept` has shape [rows]."""
        cos, sin = self.turns
        return replace(
            self,
            positions=self.positions[is_kept],
            is_placed=self.is_placed[is_kept],
            hidden=self.hidden[:, is_kept],
            turns=(cos[:, is_kept], sin[:, is_kept]),
            attended=None if self.attended is None else self.attended[is_kept],
        )

    def run(self, layer: torch.nn.Module) -> None:
        """Run one layer on the rows.

        Raises:
            NotPackable: The layer is none of those that are understood.
        """
        options = {**self._options(), KEYWORD: self.rows, "use_cache": True}
        output = layer(self.hidden, past_key_values=self.rows, **options)
        if not isinstance(output, torch.Tensor):
            raise NotPackable(f"{type(layer).__name__} returns more than states")
        self.hidden = output

    def most_attended(self, share: float) -> "_Walk":
        """Return a walk of the placed rows that are looked at most, and of all others."""
        here = self.is_placed.nonzero()[:, 0]
        # None of them or all: which does not matter.
        scores = torch.ones_like(here) if self.attended is None else self.attended[here]
        return self._keeping(here[chosen(scores, self._num(share))])

    def most_different(
        self, layer: torch.nn.Module, number: int, recipe: Recipe, share: float | None
    ) -> tuple["_Walk", float]:
        """Return a walk of those that deviate most at a layer; and what deviation stays.

        Each counts for as much as it is looked at, where that is known.
        """
        fresh = fresh_of(layer, self.hidden, **self._options())
        own, places = self.rows.own, self.rows.places
        here = self.is_placed.nonzero()[:, 0]
        by_keys = recipe.check == "keys"
        new, held = (fresh.keys, own.keys) if by_keys else (fresh.values, own.values)
        found = deviation(new[:, :, here], held[number][:, :, places[here]])
        if self.attended is not None:
            found = found.weighed(self.attended[here])
        num = found.num_above(recipe.bound) if share is None else self._num(share)
        best = chosen(found.squares, num)
        # The others keep what was computed for them here: it costs nothing more.
        self.rows.update(fresh.keys, fresh.values, number)
        return self._keeping(here[best]), found.without(best)

    def _num(self, share: float) -> int:
        return round(share * self.num_placed)

    def _keeping(self, places: torch.Tensor) -> "_Walk":
        is_kept = ~self.is_placed
        is_kept[places] = True
        return self.only(is_kept)

    def _options(self) -> dict[str, Any]:
        # A mask of four dimensions: a layer hands it on as it is.
        mask = torch.zeros(1, 1, 1, 1, dtype=self.hidden.dtype, device=self.hidden.device)
        return {
            "attention_mask": mask,
            "position_ids": self.positions[None],
            "position_embeddings": self.turns,
        }
