"""How small KV gets, what that changes in the model's answers, and how fast it is read again.

    python benchmarks/codec.py --data ../shared/data [--each 10] [--part quality|speed]

Quality: prompts of 1,000 to 2,000 tokens of Ask-CFPB and TAT-QA, the KV of all but the last token
coded in blocks of 64 as they are stored, every byte counted, against bf16; then the distributions
of the next 48 tokens, those of the model's own answer, against those behind the exact KV. What is
measured is kept in `--work`, so that a run goes on where the last one stopped. Speed: the blocks of
one prompt decoded at each level in turn; run it on an idle machine, with OMP_NUM_THREADS=1.
"""

import argparse
import json
import statistics
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from codec_prompts import Measured, Prompts
from codec_recipes import DEFAULT, IDS, Recipe, bytes_with_deltas, recipes
from machine import machine
from transformers.utils import logging as transformers_logging

from centroidkv.kv.blocks import BLOCK_TOKENS
from centroidkv.kv.codec import LEVELS, BlockCoder, block_bytes, parse_block
from centroidkv.kv.levels.q3 import Q3
from centroidkv.kv.levels.q4 import Q4
from centroidkv.kv.levels.q5k4v import Q5K4V
from centroidkv.kv.levels.q8 import Q8

STEPPED = {level.name: level for level in (Q8, Q5K4V, Q4, Q3)}
Row = dict[str, float]


def measured(prompts: Prompts, one: Measured, way: Recipe) -> Row:
    """Return what a way to store costs and changes, on one prompt."""
    block, size = way(one.block)
    found = prompts.log_probs(one, block)
    exact = one.log_probs.astype(np.float64)
    each = (np.exp(exact) * (exact - found)).sum(-1)
    return {
        "bf16_bytes": 2 * (block.keys.size + block.values.size),
        "bytes": size,
        "kl": float(each.mean()),
        "largest_logit_difference": float(np.abs(exact - found).max()),
        "same_first_token": float((exact.argmax(-1) == found.argmax(-1)).mean()),
    }


class Kept:
    """Rows measured so far, in a file, so that a run goes on where the last one stopped."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._rows: dict[str, Row] = json.loads(path.read_text()) if path.exists() else {}

    def row(self, way: str, name: str, measure: Callable[[], Row]) -> Row:
        # Steps are a part of the key: rows of other steps are not those of this run.
        key = f"{way} | {STEPPED.get(way, Q5K4V)} | {name}"
        if key not in self._rows:
            self._rows[key] = measure()
            self._path.write_text(json.dumps(self._rows))
        return self._rows[key]


def quality(prompts: Prompts, names: list[str], work: Path, *, others: bool) -> dict[str, Any]:
    """Measure the levels on every prompt, then `others`, what they are compared with."""
    kept = Kept(work / "codec_rows.json")
    ways = recipes(prompts.model.rotary)
    report: dict[str, Row] = {}
    for some in (STEPPED.keys(), ways.keys() - STEPPED.keys())[: 1 + others]:
        rows: dict[str, list[Row]] = {way: [] for way in ways if way in some}
        for name in names:
            one = prompts.measured(name)
            for way, found in rows.items():
                found.append(kept.row(way, name, partial(measured, prompts, one, ways[way])))
        report |= {way: summary(own) for way, own in rows.items()}
        for way in rows:
            print(way, ", ".join(f"{k} {v:.4g}" for k, v in report[way].items()), flush=True)
    found = {"prompts": len(names), "ways": report}
    return found | ({"deltas": deltas(prompts, names)} if others else {})


def summary(rows: list[Row]) -> Row:
    kls = [row["kl"] for row in rows]
    return {
        "ratio": sum(r["bf16_bytes"] for r in rows) / sum(r["bytes"] for r in rows),
        "kl": statistics.mean(kls),
        "kl_p95": float(np.percentile(kls, 95)),
        "largest_logit_difference": max(r["largest_logit_difference"] for r in rows),
        "same_first_token": statistics.mean(r["same_first_token"] for r in rows),
    }


def deltas(prompts: Prompts, names: list[str]) -> Row:
    """Return by how much deltas to anchor tokens change the bytes, at the same errors."""
    plain = other = 0
    for name in names[:4]:
        block = prompts.measured(name).block
        for start in range(BLOCK_TOKENS, block.num_tokens - BLOCK_TOKENS, BLOCK_TOKENS):
            part = block.part(start, start + BLOCK_TOKENS)
            sizes = bytes_with_deltas(part, prompts.model.rotary, Q5K4V.key_step)
            plain, other = plain + sizes[0], other + sizes[1]
    return {"bytes_with_deltas_to_without": other / plain}


def speed(prompts: Prompts, name: str, rounds: int) -> dict[str, Row]:
    """Return the middle of several rounds, MB of bf16 a second, every level in each round."""
    block = prompts.measured(name).block
    parts = [
        block.part(start, start + BLOCK_TOKENS)
        for start in range(0, block.num_tokens - BLOCK_TOKENS, BLOCK_TOKENS)
    ]
    coders = {level: BlockCoder(level, prompts.model.rotary) for level in LEVELS}
    options = {"ids": IDS, "token_ids": range(BLOCK_TOKENS)}
    raw = {n: [block_bytes(p, coder=c, **options) for p in parts] for n, c in coders.items()}
    taken: dict[str, dict[str, list[float]]] = {n: {"decode": [], "encode": []} for n in LEVELS}
    for _ in range(rounds):
        for level, coder in coders.items():
            begin = time.perf_counter()
            for one in raw[level]:
                _ = parse_block(one, "a block").block
            taken[level]["decode"].append(time.perf_counter() - begin)
            begin = time.perf_counter()
            block_bytes(parts[1], coder=coder, **options)
            taken[level]["encode"].append(time.perf_counter() - begin)
    mega = parts[0].keys.size * 2 * 2 / 1e6
    return {
        level: {
            "decode_mb_s": mega * len(parts) / statistics.median(times["decode"]),
            "decode_best_mb_s": mega * len(parts) / min(times["decode"]),
            "encode_mb_s": mega / statistics.median(times["encode"]),
        }
        for level, times in taken.items()
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data", type=Path, default=Path("../shared/data"))
    parser.add_argument("--work", type=Path, default=Path(".cache/codec"))
    parser.add_argument("--out", type=Path, default=Path("benchmarks/results/codec.json"))
    parser.add_argument("--part", choices=["quality", "speed"], help="only this, keep the other")
    parser.add_argument("--each", type=int, default=10, help="prompts of each question set")
    parser.add_argument("--levels-only", action="store_true", help="compare with nothing else")
    parser.add_argument("--rounds", type=int, default=20)
    options = parser.parse_args()
    transformers_logging.disable_progress_bar()
    torch.set_num_threads(1)
    prompts = Prompts(options.data, options.work)
    names = prompts.named("test", options.each)
    report = json.loads(options.out.read_text()) if options.out.exists() else {}
    report |= {"default_level": DEFAULT}
    if options.part != "speed":
        found = quality(prompts, names, options.work, others=not options.levels_only)
        report["quality"] = {"machine": machine(), **found}
        print(found.get("deltas"))
    if options.part != "quality":
        report["speed"] = {"machine": machine(), **speed(prompts, names[0], options.rounds)}
        print(report["speed"])
    options.out.write_text(json.dumps(report, indent=1) + "\n")


if __name__ == "__main__":
    main()
