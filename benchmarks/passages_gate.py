"""What the gate of `reuse="blend"` finds: the bundled model as it is, and placed wrongly."""

from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np

from centroidkv.blend import computing, gate_trial
from centroidkv.models.free_keys import turned_block
from centroidkv.models.loading import load_model
from centroidkv.placement import PlacedPassage
from centroidkv.types import KVBlock

WRONG = 150  # positions


def gate(data: Path, cache: Path, seed: int, limit: int | None) -> list[dict[str, Any]]:
    """Return one row per share of recomputed tokens, and one for keys at wrong positions."""
    del data, cache, seed, limit
    model = load_model("bundled:smollm2")

    def misplaced(start: int, stop: int, block: KVBlock) -> PlacedPassage:
        assert model.rotary is not None
        wrong = np.full(block.num_tokens, WRONG)
        return PlacedPassage(start, stop, turned_block(block, model.rotary, wrong))

    rows = []
    for share, place in ((0.15, PlacedPassage), (0.0, PlacedPassage), (0.15, misplaced)):
        vars(computing)["PlacedPassage"] = place
        figures = gate_trial.GateTrial(model, share).run()
        wrong_by = WRONG if place is misplaced else 0
        rows.append({"share": share, "positions_off": wrong_by} | asdict(figures))
    vars(computing)["PlacedPassage"] = PlacedPassage
    return rows
