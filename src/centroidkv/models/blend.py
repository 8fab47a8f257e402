"""Passages' KV at positions where it was not computed, with the tokens that matter computed again.

The flow of a blended prefill, layer by layer (J. Yao et al., "CacheBlend: Fast Large Language
Model Serving for RAG with Cached Knowledge Fusion", EuroSys 2025). Tokens that no passage covers
are always computed. The model's own layers do all the work; what they are given as a cache is
`blend_rows.Rows`. Knows nothing of prompts, stores or whether a model is fit for it.
"""

import threading
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from transformers import PreTrainedModel

from centroidkv.models.arena import input_device
from centroidkv.models.blend_choice import Recipe, attention_received, chosen, deviation
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
        passages: Sequence[PlacedPassage],
        recipe: Recipe,
        *,
        rows: int = 1,
    ) -> Blended:
        """Give a prompt's tokens behind what `kv` holds their KV; the last `rows` their logits.

        Args:
            kv: Holds the KV of the prompt's first tokens, of none or more.
            token_ids: All that follow.
            passages: Ascending, behind the tokens that `kv` holds.
            recipe: Which of the placed tokens are computed again.
            rows: Of how many tokens logits are wanted, all behind the last passage.

        Raises:
            ValueError: The passages do not fit the tokens or each other.
            NotPackable: The model's layers are none of those that are understood.
        """
        begin, end = kv.num_tokens, kv.num_tokens + len(token_ids)
        _require_fitting(passages, begin, end)
        with self._turn, torch.inference_mode():
            try:
                blended = self._run(kv, token_ids, passages, recipe, rows)
            except BaseException:
                kv.resize(begin)
                raise
            kv.resize(end)
        return blended

    def _run(
        self,
        kv: SequenceKV,
        token_ids: Sequence[int],
        passages: Sequence[PlacedPassage],
        recipe: Recipe,
        rows: int,
    ) -> Blended:
        walk = self._begin(kv, token_ids, passages, rows)
        placed = walk.num_placed
        placement = Placement(walk.rows.own, walk.rows.origin, self._rotary, passages)
        checks = {recipe.check_layer: recipe.share, **dict(recipe.later)} if placed else {}
        if recipe.share == 0:
            checks = {}
            walk.keep(~walk.is_placed)
        first = min(checks, default=0)  # before it, all tokens are computed
        uncorrected, again, new = None, 0, len(token_ids) - placed
        for number, layer in enumerate(self._body.layers):
            if number >= first:
                placement.place(number)
            if number in checks:
                left = walk.choose(layer, number, recipe, checks[number])
                uncorrected = left if uncorrected is None else uncorrected
            walk.run(layer)
            if number >= first:
                again += len(walk.positions) - new
        logits: torch.Tensor = self._head(self._body.norm(walk.hidden[:, -rows:]))[0]
        again = round(again / (len(self._body.layers) - first))
        return Blended(logits, BlendReport(placed, again, new, uncorrected))

    def _begin(
        self,
        kv: SequenceKV,
        token_ids: Sequence[int],
        passages: Sequence[PlacedPassage],
        rows: int,
    ) -> "_Walk":
        begin = kv.num_tokens
        ids = torch.tensor([list(token_ids)], device=self._device)
        hidden = self._body.get_input_embeddings()(ids)
        positions = torch.arange(begin, begin + len(token_ids), device=self._device)
        is_placed = torch.zeros_like(positions, dtype=torch.bool)
        for passage in passages:
            is_placed[passage.start - begin : passage.stop - begin] = True
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
    rows: Rows = field(init=False)

    def __post_init__(self) -> None:
        self.rows = Rows(self.kv, self.positions)

    def keep(self, is_kept: torch.Tensor) -> None:
        """Go on with some of the rows; `is_kept` has shape [rows]."""
        cos, sin = self.turns
        self.positions, self.is_placed = self.positions[is_kept], self.is_placed[is_kept]
        self.hidden = self.hidden[:, is_kept]
        self.turns = (cos[:, is_kept], sin[:, is_kept])
        self.rows = Rows(self.kv, self.positions)

    def run(self, layer: torch.nn.Module) -> None:
        """Run one layer on the rows.

        Raises:
            NotPackable: The layer is none of those that are understood.
        """
        # Four dimensions: a layer hands it on as it is.
        mask = torch.zeros(1, 1, 1, 1, dtype=self.hidden.dtype, device=self.hidden.device)
        options = {**self._options(), KEYWORD: self.rows, "use_cache": True}
        output = layer(self.hidden, attention_mask=mask, past_key_values=self.rows, **options)
        if not isinstance(output, torch.Tensor):
            raise NotPackable(f"{type(layer).__name__} returns more than states")
        self.hidden = output

    def choose(
        self, layer: torch.nn.Module, number: int, recipe: Recipe, share: float | None
    ) -> float:
        """Keep the rows that deviate most; return the part of the deviation that stays."""
        mask = torch.zeros(1, 1, 1, 1, dtype=self.hidden.dtype, device=self.hidden.device)
        fresh = fresh_of(layer, self.hidden, attention_mask=mask, **self._options())
        own, places = self.rows.own, self.rows.places
        here = self.is_placed.nonzero()[:, 0]
        by_keys = recipe.by == "keys"
        new, held = (fresh.keys, own.keys) if by_keys else (fresh.values, own.values)
        found = deviation(new[:, :, here], held[number][:, :, places[here]])
        if recipe.asked and len(here):
            asking = slice(int(here[-1]) + 1, len(places) - self.num_answered)
            received = attention_received(fresh, here, asking)
            found = found.weighed(received, recipe.asked)
        best = chosen(found, share, recipe.bound, self.num_placed)
        # The others keep what was computed for them here: it costs nothing more.
        self.rows.update(fresh.keys, fresh.values, number)
        is_kept = ~self.is_placed
        is_kept[here[best]] = True
        self.keep(is_kept)
        return found.without(best)

    def _options(self) -> dict[str, Any]:
        return {"position_ids": self.positions[None], "position_embeddings": self.turns}


def _require_fitting(passages: Sequence[PlacedPassage], begin: int, end: int) -> None:
    at = begin
    for passage in passages:
        if not at <= passage.start < passage.stop <= end:
            raise ValueError(
                f"a passage at [{passage.start}, {passage.stop}) does not fit between "
                f"{at} and {end}"
            )
        at = passage.stop
