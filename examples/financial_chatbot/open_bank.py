"""What the three chat programs share: the store, its questions, and what is told of an answer.

The store is the one that `make demo` leaves; whichever program comes first makes it. Knows no
framework: a program gives the retriever to build from and the function that runs its chain.
"""

import argparse
import logging
import os
import sys
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeAlias

os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")

import bank
from transformers.utils import logging as transformers_logging

from centroidkv import Engine
from centroidkv.errors import CentroidKVError

MAX_QUESTION_CHARS = 1000


@dataclass(slots=True)
class Answer:
    """An answer on its way. Times are the asker's: retrieval, routing and loading count.

    `passages` are those in the prompt, `found` those of them that the bank's retriever returned.
    `usage` is empty until the answer is complete.
    """

    question: str
    text: str = ""
    ttft_ms: float | None = None
    total_ms: float = 0.0
    passages: list[str] = field(default_factory=list)
    found: list[str] = field(default_factory=list)
    usage: dict[str, Any] = field(default_factory=dict)

    def line(self) -> str:
        """Tell in one line what the answer cost."""
        u = self.usage
        cluster = "no cluster" if u["cluster"] is None else f"cluster {u['cluster']}"
        return (
            f"{u['outcome']} ({u['reason']}) | {cluster} | first token "
            f"{self.ttft_ms or self.total_ms:,.0f} ms | {u['reused_tokens']:,} of "
            f"{u['prompt_tokens']:,} prompt tokens reused, {u['computed_tokens']:,} computed | "
            f"{self.total_ms / 1e3:.1f} s in all"
        )


Ask: TypeAlias = Callable[[str], Iterator[Answer]]


def arguments(description: str | None) -> argparse.ArgumentParser:
    """Return a parser that knows the options of all three programs."""
    parser = argparse.ArgumentParser(
        description=description, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--store", type=Path, default=Path("demo-store"), help="%(default)s")
    parser.add_argument(
        "--clusters", type=int, default=bank.NUM_CLUSTERS, help="for a new store: %(default)s"
    )
    parser.add_argument("--questions", type=int, help="for a new store: past questions, all")
    parser.add_argument("--max-tokens", type=int, default=64, help="of an answer: %(default)s")
    return parser


def open_engine(options: argparse.Namespace) -> Engine:
    """Open the store of the options, or a new one; leave the program if that is no store."""
    logging.basicConfig(level=logging.WARNING, format="%(message)s")
    transformers_logging.disable_progress_bar()
    try:
        return Engine.open(options.store)
    except CentroidKVError as error:
        sys.exit(str(error))


def prepare(
    engine: Engine, options: argparse.Namespace, *, retriever: Any, invoke: Callable[[str], Any]
) -> None:
    """Build a plan if the store has none, and warm the clusters that have no KV of this chain."""
    if engine.router.plan is None:
        past = bank.past_questions()[: options.questions]
        print(f"Building {engine.store.path} from {len(past):,} past questions, once.", flush=True)
        engine.build(
            questions=[q["question"] for q in past],
            retriever=retriever,
            num_clusters=options.clusters,
            max_pins=bank.MAX_PINS,
            max_pin_tokens=bank.MAX_PIN_TOKENS,
            show_progress=True,
        )
    try:
        engine.warm(invoke, show_progress=True)
    except KeyboardInterrupt:
        sys.exit("Interrupted; the next start goes on from here.")
    stats = engine.stats()
    print(
        f"{stats.num_clusters} clusters, {stats.num_filled_clusters} with KV, "
        f"{stats.disk_bytes / 1e6:,.0f} MB on disk."
    )


def timed(question: str, pieces: Iterable[str]) -> Iterator[Answer]:
    """Yield the growing answer. The clock runs from the first look at `pieces`."""
    started = time.perf_counter()
    answer = Answer(question)
    for piece in pieces:
        answer.text = (answer.text + piece).lstrip()
        answer.total_ms = (time.perf_counter() - started) * 1e3
        if answer.text and answer.ttft_ms is None:
            answer.ttft_ms = answer.total_ms
        yield answer
    answer.total_ms = (time.perf_counter() - started) * 1e3
    yield answer


def problem_with(question: str) -> str | None:
    """Say in one line why a question cannot be asked, or nothing."""
    if not question.strip():
        return "Please type a question."
    if len(question) > MAX_QUESTION_CHARS:
        return (
            f"The question has {len(question):,} characters; please keep it under "
            f"{MAX_QUESTION_CHARS:,}."
        )
    return None


def converse(ask: Ask, questions: list[str]) -> None:
    """Answer the questions given, or else those typed until the input ends."""
    for question in questions:
        print(f"\n> {question}")
        tell(ask, question)
    while not questions:
        try:
            question = input("\n> ")
        except (EOFError, KeyboardInterrupt):
            print()
            return
        tell(ask, question)


def tell(ask: Ask, question: str) -> None:
    """Print an answer as it comes, then the line about it."""
    problem = problem_with(question)
    if problem is not None:
        print(problem)
        return
    shown = 0
    try:
        for answer in ask(question):
            print(answer.text[shown:], end="", flush=True)
            shown = len(answer.text)
    except CentroidKVError as error:
        print(error)
    else:
        print(f"\n  {answer.line()}")
