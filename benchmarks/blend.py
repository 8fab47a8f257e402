"""Passages' KV at other positions: how near it comes to a full prefill, and what it saves.

    python benchmarks/blend.py --part quality --data DATA [--prompts 40] [--ways NAME ...]
    python benchmarks/blend.py --part speed --data DATA

`quality` compares with the full prefill on prompts of TAT-QA dev and Ask-CFPB, teacher-forced over
its 32 greedy tokens; what was found is kept in `--work` and not computed again. The first half of
the prompts is what recipes were chosen on, the second half has other passages and is reported
apart. `speed` times by turns, and wants an idle machine (some four minutes).
"""

import argparse
import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import torch
from blend_prompts import Case, cases, run_ups
from blend_quality import Study, Way, fewer
from blend_speed import Race, of_length, race
from machine import machine

from centroidkv.models.blend_choice import Recipe
from centroidkv.models.loading import load_model
from centroidkv.models.transformers_model import TransformersModel

LAYERS = 30  # of the bundled model
BY_VALUES = Recipe(attention=False, check="values")  # the published method
BY_KEYS = Recipe(attention=False, check="keys")

# In the order in which they are compared on each prompt.
WAYS = (
    Way("15 %", Recipe(0.15)),
    Way("10 %", Recipe(0.1)),
    Way("0 %", Recipe(0.0)),
    Way("5 %", Recipe(0.05)),
    Way("15 %, published, by V", BY_VALUES),
    Way("0 %, behind the head", Recipe(0.0), "head"),
    Way("15 %, behind the head", Recipe(0.15), "head"),
    Way("15 %, behind the head, published, by V", BY_VALUES, "head"),
    Way("25 %", Recipe(0.25)),
    Way("50 %", Recipe(0.5)),
    Way("auto", Recipe.of(None)),
    Way("15 %, published, by K", BY_KEYS),
    Way("15 %, published, fewer from layer to layer", fewer(BY_VALUES, LAYERS)),
    Way("15 %, by V and attention", replace(BY_VALUES, attention=True)),
    Way("15 %, the first in contexts too", Recipe(0.15), "all"),
    Way("15 %, one context", Recipe(0.15), "one"),
    Way("0 %, alone", Recipe(0.0), "alone"),
    Way("15 %, alone", Recipe(0.15), "alone"),
    Way("15 %, alone, published, by V", BY_VALUES, "alone"),
    Way("100 %", Recipe(1.0)),
)


def quality(model: TransformersModel, prompts: Sequence[Case], options: Any) -> list[Any]:
    """Compare every way on every prompt, and keep each row in a file at once."""
    path = options.work / "rows.jsonl"
    path.parent.mkdir(parents=True, exist_ok=True)
    rows = [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []
    done = {(row["case"], row["way"], row["recipe"]) for row in rows}
    study = Study(model, options.work, run_ups(prompts))
    ways = [w for w in WAYS if not options.ways or w.name in options.ways]
    for case in [*prompts[len(prompts) // 2 :], *prompts[: len(prompts) // 2]]:
        for way in ways:
            if (case.name, way.name, repr(way.recipe)) not in done:
                rows.append(study.compare(case, way))
                with path.open("a") as file:
                    file.write(json.dumps(rows[-1]) + "\n")
    return rows


def table(rows: Sequence[Any], prompts: Sequence[Case]) -> list[dict[str, Any]]:
    """Return means per way, over the prompts that recipes were chosen on and over the others."""
    half = len(prompts) // 2
    parts = {"chosen on": prompts[:half], "others": prompts[half:], "all": prompts}
    found = []
    for way in WAYS:
        for part, own in parts.items():
            names = {case.name for case in own}
            same = [r for r in rows if (r["way"], r["recipe"]) == (way.name, repr(way.recipe))]
            mine = [r for r in same if r["case"] in names]
            if mine:
                numbers = ("kl", "first_kl", "agreement", "again", "uncorrected")
                means = {n: round(float(np.mean([r[n] for r in mine])), 5) for n in numbers}
                found.append({"way": way.name, "prompts": part, "num": len(mine), **means})
    return found


def speed(model: TransformersModel, case: Case, *, rounds: int) -> dict[str, Any]:
    """Race the ways at several lengths, and look at the layers of one."""
    found: dict[str, Any] = {"lengths": []}
    with TemporaryDirectory() as folder:
        for num_passages in (2, 4, 8, 14):
            rival = Race(model, of_length(case, num_passages), Path(folder))
            rival.prepare()
            seconds = race(rival, rounds=rounds)
            tokens = len(rival.case.prompt)
            found["lengths"].append({"tokens": tokens, "seconds": seconds})
            print(tokens, *(f"{name} {s:.3f} s" for name, s in seconds.items()), sep="\n  ")
            if num_passages == 8:
                shares = (0.0, 0.15, 1.0)
                found["layers_ms"] = {f"{s:.0%}": rival.layers(s)[-30:] for s in shares}
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--part", choices=("quality", "speed"), required=True)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--prompts", type=int, default=40)
    parser.add_argument("--ways", nargs="*", default=())
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--work", type=Path, default=Path("build/blend"))
    parser.add_argument("--out", type=Path, default=Path("benchmarks/results"))
    options = parser.parse_args()
    model = load_model("bundled:smollm2")
    prompts = cases(model, options.data, num=options.prompts)
    report: dict[str, Any] = {"machine": machine()}
    if options.part == "quality":
        torch.set_num_threads(1)
        report["table"] = table(quality(model, prompts, options), prompts)
        for row in report["table"]:
            print(row)
    else:
        report |= speed(model, prompts[0], rounds=options.rounds)
    path = options.out / f"blend_{options.part}.json"
    path.write_text(json.dumps(report, indent=1) + "\n")


if __name__ == "__main__":
    main()
