"""What a blended prefill costs beside a full one: by share, by length of the prompt, by layer.

All ways of a prompt are timed by turns, so that a change of the machine's speed meets them alike.
A blend begins with the passages' files on disk and ends with the logits of the next token.
"""

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from blend_prompts import Case, borders

from centroidkv.blend.computing import computed
from centroidkv.blend.heads import Head
from centroidkv.blend.passages import joined
from centroidkv.kv.codec import load_block, save_block
from centroidkv.models.blend_choice import Recipe
from centroidkv.models.free_keys import PlacedPassage
from centroidkv.models.transformers_model import TransformersModel
from centroidkv.types import KVBlock

SHARES = (0.0, 0.05, 0.1, 0.15, 0.25, 0.5, 1.0)


def of_length(case: Case, num_passages: int) -> Case:
    """Return a prompt with so many passages, repeated where it has fewer."""
    many = (case.passages * (num_passages // len(case.passages) + 1))[:num_passages]
    return Case(case.name, case.pool, case.head, many, case.end)


@dataclass(slots=True)
class Race:
    """One prompt, its passages on disk, and the ways to its first logits.

    As in a store, head and first passage are there together, too, with their exact KV.
    """

    model: TransformersModel
    case: Case
    folder: Path
    _files: dict[tuple[int, ...], Path] = field(default_factory=dict)

    @property
    def _beginning(self) -> tuple[int, ...]:
        return (*self.case.head, *self.case.passages[0])

    def prepare(self) -> None:
        """Compute the KV of the passages behind the head, and write it."""
        self._write(self._beginning, self._exact())
        passages = list(dict.fromkeys(self.case.passages))
        freed = computed(self.model, Head(self.case.head), passages, namespace="race")
        for ids, blocks in zip(passages, freed, strict=True):
            self._write(ids, joined(blocks))

    def _exact(self) -> KVBlock:
        sequence = self.model.open_sequence(len(self._beginning))
        sequence.prefill(self._beginning)
        try:
            return sequence.snapshot(0, len(self._beginning))
        finally:
            sequence.close()

    def _write(self, ids: tuple[int, ...], block: KVBlock) -> None:
        path = self.folder / f"{len(self.case.prompt)}_{len(self._files)}"
        save_block(path, block, ids=("", "", ""), token_ids=ids)
        self._files[ids] = path

    def full(self) -> float:
        """Time a plain prefill."""
        sequence, begin = self._opened()
        sequence.prefill(self.case.prompt)
        sequence.logits.argmax()
        sequence.close()
        return time.perf_counter() - begin

    def full_by_rows(self) -> float:
        """Time a prefill by the code that blends, without passages."""
        sequence, begin = self._opened()
        self.model.blender.run(sequence._open, self.case.prompt, [], Recipe()).logits.argmax()
        sequence.close()
        return time.perf_counter() - begin

    def blend(self, share: float | None) -> float:
        """Time a blend, its passages read from disk."""
        sequence, begin = self._opened()
        sequence.restore([load_block(self._files[self._beginning]).block])
        rest = self.case.prompt[sequence.num_tokens :]
        passages = self._load()
        recipe = Recipe.of(share)
        self.model.blender.run(sequence._open, rest, passages, recipe).logits.argmax()
        sequence.close()
        return time.perf_counter() - begin

    def _opened(self) -> tuple[Any, float]:
        begin = time.perf_counter()
        return self.model.open_sequence(len(self.case.prompt) + 1), begin

    def load_s(self) -> float:
        """Time reading the passages alone."""
        begin = time.perf_counter()
        load_block(self._files[self._beginning])
        self._load()
        return time.perf_counter() - begin

    def _load(self) -> list[PlacedPassage]:
        passages = self.case.passages[1:]
        where = borders(passages, len(self._beginning))
        return [
            PlacedPassage(*span, load_block(self._files[ids]).block)
            for ids, span in zip(passages, where, strict=True)
        ]

    def layers(self, share: float) -> list[dict[str, float]]:
        """Return what each layer took of a blend, and what was done before it, in ms."""
        with _watched(self.model) as marks:
            begin = time.perf_counter()
            self.blend(share)
        rows, last = [], begin
        for entered, left in marks:
            rows.append({"before_ms": 1e3 * (entered - last), "layer_ms": 1e3 * (left - entered)})
            last = left
        return rows


@contextmanager
def _watched(model: TransformersModel) -> Iterator[list[tuple[float, float]]]:
    """Note when layers are entered and left, from the first forward of many rows on."""
    body: Any = model.model
    entered: list[float] = []
    marks: list[tuple[float, float]] = []

    def enter(*_: Any) -> None:
        entered.append(time.perf_counter())

    def leave(*_: Any) -> None:
        marks.append((entered[-1], time.perf_counter()))

    hooks = []
    for layer in body.get_decoder().layers:
        hooks += [layer.register_forward_pre_hook(enter), layer.register_forward_hook(leave)]
    try:
        yield marks
    finally:
        for hook in hooks:
            hook.remove()


def race(rival: Race, *, rounds: int) -> dict[str, float]:
    """Return the median seconds of each way, all ways by turns."""
    ways: dict[str, Callable[[], float]] = {
        "full": rival.full,
        "full, by rows": rival.full_by_rows,
        "read alone": rival.load_s,
        **{f"blend {share:.0%}": lambda s=share: rival.blend(s) for share in SHARES},
    }
    rival.blend(0.15)
    seconds: dict[str, list[float]] = {name: [] for name in ways}
    for _ in range(rounds):
        for name, way in ways.items():
            seconds[name].append(way())
    return {name: round(float(np.median(found)), 4) for name, found in seconds.items()}
