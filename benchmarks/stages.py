"""Where the time of a request goes: seconds per stage over questions of the example bank, a trace.

    PYTHONPATH=examples/financial_chatbot python benchmarks/stages.py [--questions 8] [--trace DIR]

A small store is built and warmed from the bank's past questions (`--store` keeps it); then unseen
questions are routed, retrieved, composed and answered, each stage timed where it is called. What
the retriever does is the user's own and stands apart. One more answer runs under torch.profiler,
and its trace (Chrome's JSON, for ui.perfetto.dev) goes into the folder, with the stages named.
"""

import argparse
import functools
import json
import tempfile
import time
from collections import defaultdict
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import bank
import numpy as np
from machine import machine
from torch.profiler import ProfilerActivity, profile, record_function
from transformers.utils import logging as transformers_logging

from centroidkv import Engine, Passage
from centroidkv.kv.tiers import TieredBlocks
from centroidkv.models.steps import Steps
from centroidkv.routing import router as routing
from centroidkv.routing.projection import Projection
from centroidkv.serving.drafts import DraftStore
from centroidkv.serving.learning import Learner
from centroidkv.serving.retrieving import Retrieving

TOKENS = 32
TRACED_TOKENS = 4
CLUSTERS, PAST = 4, 80


class Stages:
    """Seconds by stage and request. A stage that runs several times in a request is summed."""

    def __init__(self) -> None:
        self._seconds: defaultdict[str, float] = defaultdict(float)
        self._calls: defaultdict[str, int] = defaultdict(int)
        self.requests: list[dict[str, tuple[float, int]]] = []

    @contextmanager
    def stage(self, name: str) -> Iterator[None]:
        begin = time.perf_counter()
        with record_function(f"stage: {name.strip()}"):
            yield
        self._seconds[name] += time.perf_counter() - begin
        self._calls[name] += 1

    def watch(self, owner: Any, attribute: str, name: str) -> None:
        """Time a function or method of a module or class from now on."""
        work = getattr(owner, attribute)

        @functools.wraps(work)
        def timed(*args: Any, **options: Any) -> Any:
            with self.stage(name):
                return work(*args, **options)

        setattr(owner, attribute, timed)

    def end_request(self) -> None:
        self.requests.append({s: (t, self._calls[s]) for s, t in self._seconds.items()})
        self._seconds.clear()
        self._calls.clear()

    def table(self) -> dict[str, dict[str, float]]:
        """Return per stage: median and 90th percentile in ms a request, and calls a request."""
        found = {}
        for name in ORDER:
            rows = [r.get(name, (0.0, 0)) for r in self.requests]
            middle, high = np.percentile([1e3 * seconds for seconds, _ in rows], [50, 90])
            calls = float(np.mean([n for _, n in rows]))
            numbers = {"p50_ms": middle, "p90_ms": high, "calls": calls}
            found[name] = {key: round(float(value), 3) for key, value in numbers.items()}
        return found


# Indented: a part of the stage above it.
ORDER = (
    "route",
    "  embed",
    "  reduce",
    "  nearest",
    "  admission",
    "retrieve (the user's own)",
    "compose",
    "answer",
    "  encode",
    "  match",
    "  load",
    "  find drafts",
    "  prefill",
    "  decode, all steps",
    "  learn, before the answer ends",
    "learn, behind the answer",
)


def points(engine: Engine) -> list[tuple[Any, str, str]]:
    """Return what is timed of this engine's requests: owner, attribute and the stage it is."""
    sequence = engine.model.open_sequence(1)
    kind = type(sequence)
    sequence.close()
    return [
        (routing.Router, "route", "route"),
        (routing.Router, "_embed", "  embed"),
        (Projection, "transform", "  reduce"),
        (routing.Router, "_nearest", "  nearest"),
        (routing, "distance", "  admission"),
        (Retrieving, "compose", "compose"),
        (type(engine.model), "encode", "  encode"),
        (TieredBlocks, "match", "  match"),
        (kind, "restore", "  load"),
        (DraftStore, "find", "  find drafts"),
        (kind, "prefill", "  prefill"),
        (Steps, "take", "  decode, all steps"),
        (Learner, "after", "  learn, before the answer ends"),
        (Learner, "_later", "learn, behind the answer"),
    ]


def build(engine: Engine, base: Any) -> None:
    """Fill a small store: what a stage costs does not depend on how many clusters there are."""
    questions = [q["question"] for q in bank.past_questions()[:PAST]]
    engine.build(questions=questions, retriever=base, num_clusters=CLUSTERS)

    def answer(question: str) -> None:
        found = [Passage.of(d.page_content, d.metadata) for d in base.invoke(question)]
        engine.generate(prompt_of(engine, question, found), max_tokens=1)

    engine.warm(answer)


def prompt_of(engine: Engine, question: str, found: list[Passage]) -> str:
    passages = engine.compose(engine.route(question), found)
    context = "\n\n".join(p.text for p in passages)
    return bank.PROMPT.format(context=context, question=question)


def request(engine: Engine, base: Any, question: str, stages: Stages, max_tokens: int) -> Any:
    route = engine.route(question)
    with stages.stage("retrieve (the user's own)"):
        found = [Passage.of(d.page_content, d.metadata) for d in base.invoke(question)]
    context = "\n\n".join(p.text for p in engine.compose(route, found))
    prompt = bank.PROMPT.format(context=context, question=question)
    with stages.stage("answer"):
        done = engine.generate(prompt, max_tokens=max_tokens)
    engine.flush()
    stages.end_request()
    return done


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--questions", type=int, default=8)
    parser.add_argument("--store", type=Path, help="folder to keep the store in")
    parser.add_argument("--trace", type=Path, default=Path("build/profile"))
    parser.add_argument("--out", type=Path, default=Path("benchmarks/results/stages.json"))
    options = parser.parse_args()
    transformers_logging.disable_progress_bar()
    questions = [q.text for q in bank.unseen_questions()]
    stages = Stages()
    with tempfile.TemporaryDirectory() as folder, Engine.open(options.store or folder) as engine:
        base = bank.retriever(engine.router.embedder)
        if engine.router.plan is None:
            build(engine, base)
        for owner, attribute, name in points(engine):
            stages.watch(owner, attribute, name)
        request(engine, base, questions[-1], stages, TOKENS)
        stages.requests.clear()
        asked = questions[: options.questions]
        answers = [request(engine, base, q, stages, TOKENS) for q in asked]
        table = stages.table()
        with profile(activities=[ProfilerActivity.CPU]) as traced:
            request(engine, base, questions[options.questions], stages, TRACED_TOKENS)
    options.trace.mkdir(parents=True, exist_ok=True)
    path = options.trace / "request.json"
    traced.export_chrome_trace(str(path))
    whole = sum(table[s]["p50_ms"] for s in ORDER if not s.startswith(" "))
    print(f"{'':34}{'p50 ms':>10}{'p90 ms':>10}{'share':>8}{'calls':>8}{'ms a call':>11}")
    for name, row in table.items():
        share = row["p50_ms"] / whole
        print(
            f"{name:34}{row['p50_ms']:10.2f}{row['p90_ms']:10.2f}{share:8.1%}{row['calls']:8.1f}"
            f"{row['p50_ms'] / max(row['calls'], 1):11.2f}"
        )
    usages = [a.usage for a in answers]
    print(f"trace: {path} ({path.stat().st_size / 1e6:.0f} MB)")
    report = {
        "machine": machine(),
        "outcomes": [u.outcome for u in usages],
        "computed_tokens": [u.computed_tokens for u in usages],
        "completion_tokens": [u.completion_tokens for u in usages],
        "stages": table,
        "requests": stages.requests[: len(asked)],
    }
    options.out.write_text(json.dumps(report, indent=1) + "\n")


if __name__ == "__main__":
    main()
