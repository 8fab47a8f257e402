"""How far a blended prefill is from a full one: KL and greedy agreement, per recipe and prompt.

Owns the reference and its comparison. The full prefill's own greedy answer is run behind the
prompt (teacher-forced), so that one forward of a recipe gives all of its distributions. Everything
is kept in files as it is found, so that a run that was stopped goes on.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Literal, TypeAlias

import numpy as np
import torch
from blend_prompts import Case, borders

from centroidkv.blend.computing import computed
from centroidkv.blend.heads import NUM_CONTEXTS, Head
from centroidkv.blend.passages import joined
from centroidkv.models.blend_choice import Recipe
from centroidkv.models.free_keys import PlacedPassage
from centroidkv.models.transformers_model import TransformersModel
from centroidkv.types import KVBlock

TOKENS = 32
# The head and the contexts of its run-up, of the first passage the head alone; all of them
# in contexts; in one; the head alone; nothing.
Behind: TypeAlias = Literal["contexts", "all", "one", "head", "alone"]


@dataclass(frozen=True, slots=True)
class Way:
    """A row of the table: how tokens are chosen, and where passages were computed."""

    name: str
    recipe: Recipe
    behind: Behind = "contexts"


# From which part of a model's layers on, how many times the share: 1 on the average. Errors of the
# first layers go through all others.
STAGES = ((0.0, 1.8), (0.12, 1.4), (0.26, 1.1), (0.46, 0.85), (0.66, 0.63))


def fewer(recipe: Recipe, num_layers: int) -> Recipe:
    """Let a recipe with a check choose fewer from layer to layer, its share on the average."""
    assert recipe.share is not None
    layers = range(recipe.check_layer, num_layers)
    times = [[t for b, t in STAGES if round(b * num_layers) <= n][-1] for n in layers]
    shares = [recipe.share * len(times) / sum(times) * t for t in times]
    changes = zip(layers[1:], shares[1:], shares, strict=False)
    later = tuple((n, here) for n, here, before in changes if here != before)
    return replace(recipe, share=shares[0], later=later)


@dataclass(frozen=True, slots=True)
class Reference:
    """The full prefill's greedy answer, and its distributions, [tokens, vocabulary]."""

    answer: tuple[int, ...]
    log_shares: torch.Tensor


@dataclass(slots=True)
class Study:
    """Compares ways on prompts; the KV of all passages stays in memory."""

    model: TransformersModel
    folder: Path
    run_ups: Mapping[str, tuple[tuple[int, ...], ...]]
    _passages: dict[tuple[Head, tuple[int, ...]], KVBlock] = field(default_factory=dict)

    def reference(self, case: Case) -> Reference:
        """Run the full prefill and decode greedily, once for all runs."""
        path = self.folder / f"{case.name.replace('/', '_').replace(' ', '_')}.npz"
        if not path.exists():
            answer, rows = self._full(case)
            path.parent.mkdir(parents=True, exist_ok=True)
            np.savez(path, answer=answer, log_shares=rows)
        with np.load(path) as kept:
            answer = tuple(kept["answer"].tolist())
            return Reference(answer, torch.from_numpy(kept["log_shares"]))

    def _full(self, case: Case) -> tuple[list[int], np.ndarray]:
        sequence = self.model.open_sequence(len(case.prompt) + TOKENS)
        sequence.prefill(case.prompt)
        answer, rows = [], []
        for _ in range(TOKENS):
            rows.append(torch.log_softmax(sequence.logits, -1).numpy().copy())
            answer.append(int(sequence.logits.argmax()))
            sequence.prefill(answer[-1:])
        sequence.close()
        return answer, np.stack(rows)

    def compare(self, case: Case, way: Way) -> dict[str, float | str]:
        """Run one way on one prompt."""
        reference = self.reference(case)
        sequence = self.model.open_sequence(len(case.prompt) + TOKENS)
        # A store has the first passage as it is behind the head.
        exact = len(case.head) + (len(case.passages[0]) if way.behind == "contexts" else 0)
        sequence.prefill(case.prompt[:exact])
        done = self.model.blender.run(
            sequence._open,
            [*case.prompt[exact:], *reference.answer[:-1]],
            [p for p in self.placed(case, way.behind) if p.start >= exact],
            way.recipe,
            rows=TOKENS,
        )
        sequence.close()
        found = torch.log_softmax(done.logits, -1)
        true = reference.log_shares
        kl = (true.exp() * (true - found)).sum(-1)
        agrees = found.argmax(-1) == true.argmax(-1)
        return {
            "case": case.name,
            "way": way.name,
            "recipe": repr(way.recipe),
            "kl": float(kl.mean()),
            "first_kl": float(kl[0]),
            "agreement": float(agrees.float().mean()),
            "again": done.report.again_tokens / done.report.placed_tokens,
            "uncorrected": done.report.uncorrected or 0.0,
        }

    def placed(self, case: Case, behind: Behind) -> list[PlacedPassage]:
        """Return a prompt's passages where they belong."""
        run_up = self.run_ups[case.pool]
        head = {
            "contexts": Head(case.head, run_up),
            "all": Head(case.head, run_up),
            "one": Head(case.head, run_up[: len(run_up) // NUM_CONTEXTS]),
            "head": Head(case.head),
            "alone": Head(()),
        }[behind]
        places = borders(case.passages, len(case.head))
        return [
            PlacedPassage(*where, self._block(head, ids, is_split=behind != "one"))
            for ids, where in zip(case.passages, places, strict=True)
        ]

    def _block(self, head: Head, ids: tuple[int, ...], *, is_split: bool) -> KVBlock:
        key = (head, ids)
        if key not in self._passages:
            if not is_split:  # all that stands before it at once
                head = Head(head.all_ids)
            (blocks,) = computed(self.model, head, [ids], namespace="study")
            self._passages[key] = joined(blocks)
        return self._passages[key]
