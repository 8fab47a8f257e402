"""The time to the first token over passages in orders never seen: in full, exact and blended.

Through the engine, loading included. The ways take turns. In every prompt another passage stands
first, so that what one leaves in memory is of no use to the next but for the head. Passages are
told apart by a marker: a retriever wrapper would learn to put some in front, and each way would
have prompts of its own.
"""

import json
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from passages_users import SYSTEM, texts_of

from centroidkv import Engine, Usage

SHOWN, BASE, ROUNDS = 8, 24, 7
WAYS = ("off", "exact", "blend")
MARK = "Passage:"
# With next to no memory, every block comes from disk.
BUDGETS = {"memory": 1 << 30, "disk": 1}


@dataclass(slots=True)
class Scene:
    """What is asked, and over how many of which passages."""

    texts: list[str]
    shown: int
    random: np.random.Generator
    asked: int = 0

    def ask(self, engine: Engine, way: Any) -> Usage:
        """Answer one token; another passage stands first than in all prompts before."""
        first = self.asked % len(self.texts)
        self.asked += 1
        others = self.random.permutation([i for i in range(len(self.texts)) if i != first])
        shown = [self.texts[i] for i in (first, *others[: self.shown - 1])]
        return self._answered(engine, shown, way)

    def teach(self, engine: Engine) -> None:
        """Show every passage, so that it is computed behind an answer.

        Twice: behind the first answer, the prompts' head is not known.
        """
        for start in (*range(0, len(self.texts), self.shown), 0):
            self._answered(engine, self.texts[start : start + self.shown], "blend")
            engine.flush()

    def _answered(self, engine: Engine, shown: list[str], way: Any) -> Usage:
        context = "".join(f"{MARK} {text}\n" for text in shown)
        question = f"What holds in case {self.asked}?"
        prompt = f"{SYSTEM}\n\n{context}{MARK} none\nQuestion: {question}"
        return engine.generate(prompt, max_tokens=1, reuse=way, question=question).usage


def ttft(
    data: Path, cache: Path, seed: int, limit: int | None, *, quick: bool = False
) -> list[dict[str, Any]]:
    """Return one row per place that blocks come from; `limit` is how many rounds are run."""
    del cache
    rounds = limit or (1 if quick else ROUNDS)
    texts = texts_of(data, 6 if quick else BASE)
    rows = []
    with tempfile.TemporaryDirectory() as folder:
        for place, budget in BUDGETS.items():
            settings = {"reuse": "blend", "drafts": False, "memory_budget_bytes": budget}
            settings["passage_marker"] = MARK
            scene = Scene(texts, 3 if quick else SHOWN, np.random.default_rng(seed))
            with Engine.open(Path(folder) / place, **settings) as engine:
                scene.teach(engine)
                rows.append({"blocks": place, **_race(engine, scene, rounds)})
                print(json.dumps(rows[-1]), flush=True)
    return rows


def _race(engine: Engine, scene: Scene, rounds: int) -> dict[str, Any]:
    """Let the ways take turns; return medians, in seconds."""
    found: dict[str, list[Usage]] = {way: [] for way in WAYS}
    for number in range(rounds + 1):
        for way in WAYS:
            usage = scene.ask(engine, way)
            engine.flush()  # what is learnt behind one answer does not slow the next
            if number:  # the first round is for warming up
                found[way].append(usage)
    row: dict[str, Any] = {"rounds": rounds}
    for way, usages in found.items():
        for name in ("ttft_s", "load_s", "prefill_s"):
            row[f"{way}_{name}"] = round(float(np.median([getattr(u, name) for u in usages])), 4)
        row[f"{way}_tokens"] = round(float(np.mean([u.prompt_tokens for u in usages])))
        row[f"{way}_reused"] = round(float(np.mean([u.reused_tokens for u in usages])))
    blended = found["blend"]
    row["blended"] = round(float(np.mean([u.blended_tokens for u in blended])))
    row["again"] = round(float(np.mean([u.recomputed_tokens for u in blended])))
    row["tiers"] = sorted({u.tier for u in blended})
    row["problems"] = sorted({u.blend_problem for u in blended if u.blend_problem})
    for way in WAYS[:-1]:
        row[f"{way}_to_blend"] = round(row[f"{way}_ttft_s"] / row["blend_ttft_s"], 2)
    return row
