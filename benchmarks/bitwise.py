"""What bitwise mode keeps and what it costs: logits with reuse on and off, compared bit by bit.

    PYTHONPATH=examples/financial_chatbot python benchmarks/bitwise.py [--rounds 8]

In float32, bfloat16 and int8, with and without `bitwise=True`, over the same prompts of the example
bank in turn. A first question about a context fills the store; a second one is then answered
with reuse on, its prefix in memory, and with reuse off. Every decoded token's logits of the two
answers are compared. Behind a token that differs there is nothing to compare: it counts as other.
"""

import argparse
import json
import statistics
import tempfile
import time
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from machine import machine
from overhead import prompt
from transformers.utils import logging as transformers_logging

from centroidkv import Engine
from centroidkv.config import Sampling
from centroidkv.models.loading import load_model
from centroidkv.types import Token

TOKENS = 8
TYPES = {
    "float32": {"dtype": "float32"},
    "bfloat16": {"dtype": "bfloat16"},
    "int8": {"quantization": "int8"},
}


def _prompt(number: int, question: str) -> str:
    """Return a prompt of some 1,000 tokens; those of one number share all but the question."""
    return prompt(number, question, num_passages=6)


def note_logits(model: Any) -> list[torch.Tensor]:
    """Let a model write the logits of every token it decodes into the list returned."""
    opening, noted = model.open_sequence, []

    def open_sequence(*args: Any, **options: Any) -> Any:
        sequence = opening(*args, **options)
        decoding = sequence.decode

        def decode(sampling: Sampling) -> Iterator[Token]:
            for token in decoding(sampling):
                noted.append(sequence.logits.float().clone())
                yield token

        sequence.decode = decode
        return sequence

    model.open_sequence = open_sequence
    return noted


class Compared:
    """Two engines of one element type, bitwise and not, and what was seen of each."""

    def __init__(self, folder: Path, dtype: str) -> None:
        plain = Engine.open(folder / dtype, **TYPES[dtype])
        embedder = plain.router.embedder
        bitwise = Engine.open(
            folder / f"{dtype}-bitwise", model=plain.model, embedder=embedder, bitwise=True
        )
        self.engines = {"normal": plain, "bitwise": bitwise}
        self.noted = {"bitwise": note_logits(bitwise.model), "normal": note_logits(plain.model)}
        self._rows: dict[tuple[str, str], tuple[list[torch.Tensor], tuple[int, ...]]] = {}
        self.seen: dict[str, dict[str, list[float]]] = defaultdict(lambda: defaultdict(list))

    def round(self, number: int) -> None:
        names = ["normal", "bitwise"] if number % 2 else ["bitwise", "normal"]
        for name in names:
            self.engines[name].generate(_prompt(number, "What does it cost?"), max_tokens=1)
            self.engines[name].flush()
        for reuse in ["exact", "off"] if number // 2 % 2 else ["off", "exact"]:
            for name in names:
                self._ask(name, _prompt(number, "How long does it take?"), reuse)
        for name in names:
            self._compare(name)

    def _ask(self, name: str, text: str, reuse: str) -> None:
        noted, seen = self.noted[name], self.seen[name]
        noted.clear()
        done = self.engines[name].generate(text, max_tokens=TOKENS, reuse=reuse)
        self.engines[name].flush()
        self._rows[name, reuse] = (list(noted), done.token_ids)
        seen[f"{reuse}_ttft_s"].append(done.usage.ttft_s)
        seen[f"{reuse}_prefill_s"].append(done.usage.prefill_s)
        if reuse == "exact":
            assert done.usage.reused_tokens >= 512, done.usage
            seen["reused_tokens"].append(done.usage.reused_tokens)
            seen["prompt_tokens"].append(done.usage.prompt_tokens)

    def _compare(self, name: str) -> None:
        seen = self.seen[name]
        (warm, warm_ids), (cold, cold_ids) = (self._rows[name, r] for r in ("exact", "off"))
        seen["same_tokens"].append(float(warm_ids == cold_ids))
        for i in range(max(len(warm), len(cold))):
            is_comparable = i < min(len(warm), len(cold)) and warm_ids[:i] == cold_ids[:i]
            seen["same_bits"].append(float(is_comparable and torch.equal(warm[i], cold[i])))
            if is_comparable:
                seen["difference"].append(float((warm[i] - cold[i]).abs().max()))

    def report(self) -> dict[str, Any]:
        middle = {
            name: {k: statistics.median(v) for k, v in seen.items() if k.endswith("_s")}
            for name, seen in self.seen.items()
        }
        rows = {
            name: {
                "logits_compared": len(seen["same_bits"]),
                "share_equal_to_the_bit": statistics.mean(seen["same_bits"]),
                "largest_difference": max(seen["difference"]),
                "share_of_answers_with_equal_tokens": statistics.mean(seen["same_tokens"]),
                "prompt_tokens": statistics.median(seen["prompt_tokens"]),
                "reused_tokens": statistics.median(seen["reused_tokens"]),
                **middle[name],
            }
            for name, seen in self.seen.items()
        }
        ratios = {k: middle["bitwise"][k] / middle["normal"][k] for k in middle["normal"]}
        return {**rows, "bitwise / normal": ratios}

    def close(self) -> None:
        for engine in self.engines.values():
            engine.close()


def flooring(rounds: int) -> dict[str, Any]:
    """Time the end of a prompt of 1,030 tokens whose last 20 are new, by how many were given up.

    A normal hit computes 20 tokens; on the grid between 0 and 255 more, by where the border lies.
    """
    model = load_model("bundled:smollm2")
    ids = model.encode(_prompt(0, "What does it cost?")).token_ids[:1030]
    sequence = model.open_sequence(len(ids))
    sequence.prefill(ids)
    times: dict[str, list[float]] = defaultdict(list)
    for number in range(rounds):
        for given_up in (0, 127, 255) if number % 2 else (255, 127, 0):
            start = len(ids) - 20 - given_up
            sequence.truncate(start)
            begin = time.perf_counter()
            sequence.prefill(ids[start:])
            times[str(given_up)].append(time.perf_counter() - begin)
    sequence.close()
    middle = {name: statistics.median(values) for name, values in times.items()}
    return {"seconds": times, "ratio": {n: v / middle["0"] for n, v in middle.items()}}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=8)
    parser.add_argument("--out", type=Path, default=Path("benchmarks/results/bitwise.json"))
    parser.add_argument("--only", choices=["flooring"], help="measure this again, keep the rest")
    options = parser.parse_args()
    transformers_logging.disable_progress_bar()
    if options.only:
        kept = json.loads(options.out.read_text())
        kept["flooring"] = flooring(options.rounds)
        print(kept["flooring"]["ratio"])
        options.out.write_text(json.dumps(kept, indent=1) + "\n")
        return
    report: dict[str, Any] = {"machine": machine()}
    with tempfile.TemporaryDirectory() as folder:
        compared = {dtype: Compared(Path(folder), dtype) for dtype in TYPES}
        for number in range(options.rounds):
            for each in compared.values():
                each.round(number)
        for dtype, each in compared.items():
            report[dtype] = each.report()
            each.close()
    report["flooring"] = flooring(options.rounds)
    print("flooring", report["flooring"]["ratio"])
    for dtype in TYPES:
        print(dtype)
        for name, row in report[dtype].items():
            print(f"  {name}: " + ", ".join(f"{k} {v:.4g}" for k, v in row.items()))
    options.out.write_text(json.dumps(report, indent=1) + "\n")


if __name__ == "__main__":
    main()
