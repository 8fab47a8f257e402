"""What reuse costs when it does not help, and what a hit costs when it does.

Interleaved in one run, on prompts of the example bank, the bundled model in float32:

- a prompt with reuse off against one plain transformers forward of the same prompt
- a miss with the store on against the same with it off, to the last token
- a hit from memory and a hit from disk against the same prompt cold

    python benchmarks/overhead.py [--rounds 12] [--out benchmarks/results/overhead.json]
"""

import argparse
import json
import shutil
import statistics
import tempfile
import time
from collections import defaultdict
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import bank
import torch
from machine import machine
from transformers import AutoModelForCausalLM
from transformers.utils import logging as transformers_logging

from centroidkv import Engine
from centroidkv.models.bundled import bundled_folder

NEW_TOKENS = 32


def prompt(number: int, question: str = "What does it cost?", num_passages: int = 10) -> str:
    """Return a prompt that no other number shares a prefix with; ten passages, 1,600 tokens."""
    passages = bank.documents()
    numbers = [(number * 7 + i * 11) % len(passages) for i in range(num_passages)]
    chosen = [passages[n].page_content for n in numbers]
    context = f"Customer number {number}.\n\n" + "\n\n".join(chosen)
    return bank.PROMPT.format(context=context, question=question)


def seconds(work: Callable[[], Any]) -> float:
    started = time.perf_counter()
    work()
    return time.perf_counter() - started


def measure(folder: Path, rounds: int) -> dict[str, list[float]]:
    """Return the seconds of each kind of request, round by round."""
    plain = AutoModelForCausalLM.from_pretrained(
        bundled_folder("bundled:smollm2"), dtype=torch.float32
    )
    times: dict[str, list[float]] = defaultdict(list)
    with Engine.open(folder) as engine:
        engine.generate(prompt(10_000), max_tokens=2, reuse="off")
        for number in range(rounds):
            text = prompt(number)
            ids = torch.tensor([engine.model.encode(text).token_ids])

            def forward(ids: torch.Tensor = ids) -> None:
                with torch.inference_mode():
                    plain(input_ids=ids, use_cache=True, logits_to_keep=1)

            def first_token(text: str = text) -> None:
                engine.generate(text, max_tokens=1, reuse="off")

            pairs = [("plain_forward", forward), ("reuse_off_first_token", first_token)]
            for name, work in pairs if number % 2 else pairs[::-1]:
                times[name].append(seconds(work))
            engine.generate(text, max_tokens=1)
            again = prompt(number, "How long does it take?")
            times["hit_memory_ttft"].append(answer(engine, again, "exact", "memory")["ttft_s"])
            times["cold_ttft"].append(answer(engine, again, "off")["ttft_s"])
            times["hit_total"].append(answer(engine, again, "exact", "memory")["total_s"])
            times["cold_total"].append(answer(engine, again, "off")["total_s"])
        for number in range(4 * rounds):
            # Whole calls by the wall clock, so that copying the KV out of the arena counts.
            text = prompt(20_000 + number, num_passages=5)
            ways: list[tuple[str, Any]] = [("miss_store_off", "off"), ("miss_store_on", "exact")]
            for name, reuse in ways if number % 2 else ways[::-1]:
                miss = partial(engine.generate, text, max_tokens=16, reuse=reuse)
                times[name].append(seconds(miss))
                engine.flush()
    # No memory tier: every hit is read from disk (from the page cache, as a rule).
    with Engine.open(folder, memory_budget_bytes=0) as engine:
        engine.generate(prompt(10_001), max_tokens=2, reuse="off")
        for number in range(rounds):
            again = prompt(number, "How long does it take?")
            times["hit_disk_ttft"].append(answer(engine, again, "exact", "disk")["ttft_s"])
    return dict(times)


def answer(engine: Engine, text: str, reuse: Any, tier: str | None = None) -> dict[str, float]:
    done = engine.generate(text, max_tokens=NEW_TOKENS, reuse=reuse)
    usage = done.usage
    assert tier is None or (usage.tier, usage.outcome) == (tier, "hit"), usage
    return {"ttft_s": usage.ttft_s, "total_s": usage.total_s}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=12)
    parser.add_argument("--out", type=Path, default=Path("benchmarks/results/overhead.json"))
    options = parser.parse_args()
    transformers_logging.disable_progress_bar()
    folder = Path(tempfile.mkdtemp())
    try:
        times = measure(folder / "store", options.rounds)
    finally:
        shutil.rmtree(folder)
    middle = {name: statistics.median(values) for name, values in times.items()}
    ratios = {
        "reuse off, first token / one plain transformers forward": middle["reuse_off_first_token"]
        / middle["plain_forward"],
        "miss, store on / store off, last token": middle["miss_store_on"]
        / middle["miss_store_off"],
        "miss, store on / store off, median of pairs": statistics.median(
            on / off
            for on, off in zip(times["miss_store_on"], times["miss_store_off"], strict=True)
        ),
        "cold / hit in memory, first token": middle["cold_ttft"] / middle["hit_memory_ttft"],
        "cold / hit on disk, first token": middle["cold_ttft"] / middle["hit_disk_ttft"],
        "cold / hit in memory, last token": middle["cold_total"] / middle["hit_total"],
    }
    for name, value in middle.items():
        print(f"{name:26}{value * 1e3:9.1f} ms")
    for name, value in ratios.items():
        print(f"{name:58}{value:7.2f}")
    report = {"machine": machine(), "rounds": options.rounds, "ratios": ratios, "seconds": times}
    options.out.parent.mkdir(parents=True, exist_ok=True)
    options.out.write_text(json.dumps(report, indent=1) + "\n")


if __name__ == "__main__":
    main()
