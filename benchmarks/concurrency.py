"""Users at once: throughput on one cluster and on several, and the memory of their KV.

    PYTHONPATH=examples/financial_chatbot python benchmarks/concurrency.py [--rounds 3]

Each user asks one question after the other and reads each answer to its end, 32 tokens. Every
question is new; the prefix of about 1,024 tokens is in memory. Rounds go through all numbers of
users in turn. `--turns` measures `max_running=1`, where requests take turns. On a busy machine, run
it with `OMP_NUM_THREADS=1` and look at tokens per second of processor time, which others slow down
less.
"""

import argparse
import itertools
import json
import statistics
import tempfile
import time
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import NamedTuple

import bank
from machine import machine
from transformers.utils import logging as transformers_logging

from centroidkv import Completion, Engine

TOKENS = 32
PREFIX_TOKENS = 1024
USERS = (1, 2, 4, 8, 16)
CLUSTERS = (1, 4)


def contexts(engine: Engine, count: int) -> list[str]:
    """Texts of passages, each about as long as the prefix is to be, none with another's start."""
    passages = [d.page_content for d in bank.documents()]
    found = []
    for number in range(count):
        text = ""
        for passage in passages[number::count]:
            longer = f"{text}\n\n{passage}" if text else passage
            if engine.model.count_tokens(longer) > PREFIX_TOKENS - 40:
                break
            text = longer
        found.append(text)
    return found


class Seconds(NamedTuple):
    """What a run took: by the clock, and of processor time."""

    clock: float
    processor: float


def ask_all(engine: Engine, prompts: list[str], users: int) -> tuple[Seconds, list[Completion]]:
    """Let users ask their share of the prompts; return the seconds and the answers."""

    def user(share: list[str]) -> list[Completion]:
        return [engine.generate(p, max_tokens=TOKENS) for p in share]

    begin = Seconds(time.perf_counter(), time.process_time())
    with ThreadPoolExecutor(users) as pool:
        done = list(pool.map(user, [prompts[i::users] for i in range(users)]))
    took = Seconds(time.perf_counter() - begin.clock, time.process_time() - begin.processor)
    return took, list(itertools.chain(*done))


def measure(
    engine: Engine, prompts: dict[int, Iterator[str]], options: argparse.Namespace
) -> dict[str, dict[str, list[float]]]:
    """Ask with each number of users in turn; tokens a second and seconds to the first token."""
    found: dict[str, dict[str, list[float]]] = {}
    for number in range(options.rounds):
        order = options.users if number % 2 else options.users[::-1]
        for clusters, users in itertools.product(CLUSTERS, order):
            asked = list(itertools.islice(prompts[clusters], users * options.each))
            seconds, done = ask_all(engine, asked, users)
            engine.flush()
            empty: dict[str, list[float]] = {"rate": [], "processor rate": [], "ttft": []}
            cell = found.setdefault(f"{clusters} clusters, {users} users", empty)
            count = sum(len(c.token_ids) for c in done)
            cell["rate"].append(count / seconds.clock)
            cell["processor rate"].append(count / seconds.processor)
            cell["ttft"] += [c.usage.ttft_s for c in done]
    return found


def kv_ratio(engine: Engine, prompts: list[str]) -> dict[str, float]:
    """Compare the KV memory of running requests with their prefix once and their own tails."""
    ids = [engine.model.encode(p).token_ids for p in prompts]
    prefix = next(i for i, column in enumerate(zip(*ids, strict=False)) if len(set(column)) > 1)
    with ThreadPoolExecutor(len(prompts)) as pool:
        streams = [engine.stream(p, max_tokens=TOKENS) for p in prompts]
        list(pool.map(next, streams))
        held = engine.model.arenas.num_bytes
        for stream in streams:
            stream.close()
    needed = prefix + sum(len(i) - prefix + TOKENS for i in ids)
    apart = sum(len(i) + TOKENS for i in ids)
    size = engine.model.shape.bytes_per_token
    return {
        "requests": len(prompts),
        "prefix_tokens": prefix,
        "held_bytes": held,
        "held / (prefix + tails)": held / (needed * size),
        "held / each its own prefix": held / (apart * size),
    }


def gain(cells: dict[str, dict[str, list[float]]], kind: str) -> dict[str, float]:
    """Compare the median of each cell with that of one user on as many clusters."""
    rate = {name: statistics.median(cell[kind]) for name, cell in cells.items()}
    return {name: r / rate[f"{name.split(',')[0]}, 1 users"] for name, r in rate.items()}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--each", type=int, default=2, help="questions a user asks in a round")
    parser.add_argument("--users", type=int, nargs="+", default=USERS, help="1 must be there")
    parser.add_argument("--drafts", action="store_true")
    parser.add_argument("--turns", action="store_true")
    parser.add_argument("--out", type=Path, default=Path("benchmarks/results/concurrency.json"))
    options = parser.parse_args()
    transformers_logging.disable_progress_bar()
    most = 1 if options.turns else USERS[-1]
    with (
        tempfile.TemporaryDirectory() as folder,
        Engine.open(folder, drafts=options.drafts, max_running=most) as engine,
    ):
        texts = contexts(engine, CLUSTERS[-1])
        questions = itertools.cycle(q.text for q in bank.unseen_questions())
        numbers = itertools.count()

        def ask(clusters: int) -> Iterator[str]:
            for number in itertools.count():
                question = f"{next(questions)} ({next(numbers)})"
                yield bank.PROMPT.format(context=texts[number % clusters], question=question)

        prompts = {clusters: ask(clusters) for clusters in CLUSTERS}
        for prompt in itertools.islice(prompts[CLUSTERS[-1]], CLUSTERS[-1]):
            engine.generate(prompt, max_tokens=1)
        engine.flush()
        ask_all(engine, list(itertools.islice(prompts[1], 4)), 4)  # the first shared forward
        memory = kv_ratio(engine, list(itertools.islice(prompts[1], 16)))
        cells = measure(engine, prompts, options)
        sizes: Counter[int] = engine.model.batcher.sizes
    gains = {kind: gain(cells, kind) for kind in ("rate", "processor rate")}
    for name, cell in cells.items():
        ttft = statistics.median(cell["ttft"])
        figures = "".join(
            f"{statistics.median(cell[kind]):8.1f} tokens/s{gains[kind][name]:6.2f}"
            for kind in gains
        )
        print(f"{name:24}{figures}{ttft * 1e3:9.0f} ms to the first")
    print(memory)
    report = {
        "machine": machine(),
        "settings": {"drafts": options.drafts, "max_running": most, "tokens": TOKENS},
        "throughput / one user": gains,
        "kv": memory,
        "forwards by number of sequences": dict(sorted(sizes.items())),
        "cells": cells,
    }
    known = json.loads(options.out.read_text()) if options.out.exists() else {}
    name = ("taking turns" if options.turns else "batched") + (", drafts" * options.drafts)
    options.out.write_text(json.dumps({**known, name: report}, indent=1) + "\n")


if __name__ == "__main__":
    main()
