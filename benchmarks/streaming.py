"""Time to the first token when the prompt's KV lies behind a slow link.

    OMP_NUM_THREADS=1 python benchmarks/streaming.py --data ../shared/data [--repeats 3]

A prompt of about 2,000 tokens of Ask-CFPB; its KV lies on a remote, at every level, and an engine
with an empty store asks another question behind the same passages. Ways: everything at one level,
computing everything (reuse off), and the adaptive policy, over links of 0.1, 1 and 10 Gbit/s, in
turn, medians. The store keeps raw blocks of this float32 model as float32: `raw` counts all of
these bytes, `raw as bf16` half of them, which is what loading at other levels is compared with
(`load_s`: finding the prefix, and waiting until it is in place; the first token takes computing
the question more). `adaptive` may choose among the levels as they are, so its best fixed choice
leaves `raw as bf16` out. It learns each link in its first request, which is reported as `cold`;
the last rows ask with a `ttft_objective_s` that computing would meet. Run it on an idle machine.
"""

import argparse
import json
import statistics
import tempfile
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from machine import machine
from throttled import LINK

from centroidkv import Engine
from centroidkv.kv.bandwidth import Meter
from centroidkv.kv.blocks import namespace_id
from centroidkv.kv.codec import LEVELS, BlockCoder
from centroidkv.models.loading import load_model
from centroidkv.serving.prefill_speed import PrefillSpeed
from centroidkv.serving.streaming import Outlook, Source, StreamingPolicy
from centroidkv.types import FloatArray, Usage

GBITS = (0.1, 1.0, 10.0)
RAW_BF16, COMPUTE, ADAPTIVE, AIMED = "raw as bf16", "compute", "adaptive", "adaptive, aimed"
WAYS = (*LEVELS, RAW_BF16, COMPUTE, ADAPTIVE)


class NoEmbedder:
    """Nothing is routed here."""

    fingerprint = "none"

    def embed(self, texts: list[str]) -> FloatArray:
        return np.ones((len(texts), 1), np.float32)


class LoadAll(StreamingPolicy):
    """The fixed choice: everything at one level, whatever the link does."""

    def __init__(self, level: str) -> None:
        self._fixed = level

    def wait_s(self, outlook: Outlook) -> float:  # noqa: ARG002
        return 1e6

    def level(self, source: Source, outlook: Outlook) -> str:  # noqa: ARG002
        return self._fixed


@dataclass
class Bench:
    """One model, one prompt, and what was learnt about speeds so far."""

    passages: str
    model: Any = field(default_factory=lambda: load_model("bundled:smollm2", dtype="float32"))
    speed: PrefillSpeed = field(default_factory=PrefillSpeed)
    meters: dict[float, Meter] = field(default_factory=dict)
    asked: int = 0

    def engine(self, folder: Path) -> Engine:
        engine = Engine.open(
            folder,
            model=self.model,
            embedder=NoEmbedder(),
            remote={"url": "throttled://kv", "timeout_s": 60.0, "lookup_s": 5.0},
            drafts=False,
        )
        uploads = engine.store.blocks.uploads
        assert uploads is not None
        namespace = namespace_id("kv", self.model.fingerprint, "")
        uploads.coders[namespace] = tuple(BlockCoder(x, self.model.rotary) for x in LEVELS)
        return engine

    def fill(self) -> None:
        """Put the prompt's KV on the remote, at every level."""
        with tempfile.TemporaryDirectory() as folder, self.engine(Path(folder)) as engine:
            engine.generate(self.prompt("What is this about?"), max_tokens=1)
            engine.flush()

    def prompt(self, question: str) -> str:
        return f"{self.passages}\n\nQuestion: {question}"

    def ask(self, way: str, gbits: float, objective_s: float | None = None) -> Usage:
        """Ask a new question from an empty store over the link; return what it cost."""
        self.asked += 1
        question = self.prompt(f"What should I do in case number {self.asked}, and why?")
        with tempfile.TemporaryDirectory() as folder, self.engine(Path(folder)) as engine:
            self._prepare(engine, way, gbits, objective_s)
            LINK.bits_per_s, LINK.latency_s = gbits * 1e9, 1e-3
            LINK.raw_share = 0.5 if way == RAW_BF16 else 1.0
            reuse = "off" if way == COMPUTE else "exact"
            usage = engine.generate(question, max_tokens=1, reuse=reuse).usage
            LINK.bits_per_s, LINK.latency_s = float("inf"), 0.0
        return usage

    def _prepare(self, engine: Engine, way: str, gbits: float, objective_s: float | None) -> None:
        """Give an engine the policy, and what earlier engines have measured."""
        store = engine.store
        store.prefill_speed = self.speed
        if way in (ADAPTIVE, AIMED):
            store.blocks.meter = self.meters.setdefault(gbits, Meter())
            store.streaming = StreamingPolicy(
                store.blocks.meter, self.speed, objective_s=objective_s
            )
        else:
            store.streaming = LoadAll("raw" if way == RAW_BF16 else way)


def passages(data: Path, model: Any, num_tokens: int) -> str:
    rows = (data / "ask_cfpb" / "passages.jsonl").read_text("utf-8").splitlines()
    text = ""
    for row in map(json.loads, rows):
        text += f"\n\n{row['question']}\n{row['answer']}"
        if model.count_tokens(text) > num_tokens:
            break
    words = text.split(" ")
    while model.count_tokens(" ".join(words)) > num_tokens:
        words.pop()
    return " ".join(words)


def row(usages: list[Usage]) -> dict[str, Any]:
    last = usages[-1]
    return {
        "ttft_s": round(statistics.median(u.ttft_s for u in usages), 3),
        "load_s": round(statistics.median(u.load_s for u in usages), 3),
        "all_s": [round(u.ttft_s, 3) for u in usages],
        "loaded_bytes": last.loaded_bytes,
        "levels": list(last.loaded_levels),
        "unloaded_tokens": last.unloaded_tokens,
        "reused_tokens": last.reused_tokens,
    }


def at_speed(bench: Bench, gbits: float, repeats: int) -> dict[str, Any]:
    seen: dict[str, list[Usage]] = {way: [] for way in WAYS}
    cold = bench.ask(ADAPTIVE, gbits)
    for _ in range(repeats):
        for way in WAYS:
            seen[way].append(bench.ask(way, gbits))
    rows = {way: row(usages) for way, usages in seen.items()}
    fixed = {way: rows[way]["ttft_s"] for way in (*LEVELS, COMPUTE)}
    best = min(fixed, key=lambda way: fixed[way])
    objective_s = 1.25 * rows[COMPUTE]["ttft_s"]
    aimed = [bench.ask(AIMED, gbits, objective_s) for _ in range(repeats)]
    return {
        **rows,
        "cold": row([cold]),
        AIMED: row(aimed),
        "objective_s": round(objective_s, 3),
        "missed": sum(u.ttft_s > objective_s for u in aimed),
        "best fixed": best,
        "adaptive over best fixed": round(rows[ADAPTIVE]["ttft_s"] / fixed[best], 3),
        "loading raw as bf16 over level": {
            level: round(rows[RAW_BF16]["load_s"] / rows[level]["load_s"], 2)
            for level in LEVELS[1:]
        },
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--tokens", type=int, default=1950)
    parser.add_argument("--out", type=Path)
    given = parser.parse_args()
    bench = Bench("")
    bench.passages = passages(given.data, bench.model, given.tokens)
    bench.fill()
    for _ in range(2):
        first = bench.ask(COMPUTE, 10.0)  # warms the model up
    report: dict[str, Any] = {"machine": machine(), "prompt_tokens": first.prompt_tokens}
    for gbits in GBITS:
        report[f"{gbits} Gbit/s"] = at_speed(bench, gbits, given.repeats)
        print(json.dumps(report[f"{gbits} Gbit/s"], indent=1), flush=True)
    if given.out:
        given.out.write_text(json.dumps(report, indent=1) + "\n", "utf-8")


if __name__ == "__main__":
    main()
