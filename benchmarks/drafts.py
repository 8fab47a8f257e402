"""What verified drafts save: first-time and repeated questions, drafts on and off, in turn.

    PYTHONPATH=examples/financial_chatbot python benchmarks/drafts.py [--questions 10]

Two stores of one model, one with `drafts=False`. Every question is asked twice of each, 32 tokens;
the prefix is in memory in all four cases. Seconds are those from the call to the last token.
"""

import argparse
import json
import statistics
import tempfile
from pathlib import Path

import bank
from machine import machine
from transformers.utils import logging as transformers_logging

from centroidkv import Engine

TOKENS = 32


def measure(folder: Path, questions: list[str]) -> dict[str, list[float]]:
    plain = Engine.open(folder / "plain", drafts=False)
    drafted = Engine.open(folder / "drafted", model=plain.model, embedder=plain.router.embedder)
    base = bank.retriever(plain.router.embedder)
    times: dict[str, list[float]] = {}
    guessed = 0
    for number, question in enumerate(questions):
        context = "\n\n".join(d.page_content for d in base.invoke(question))
        prompt = bank.PROMPT.format(context=context, question=question)
        for engine in (plain, drafted):
            engine.generate(prompt, max_tokens=1)  # the prefix goes into the store
            engine.flush()
        for turn in ("first", "again"):
            order = [("off", plain), ("on", drafted)]
            answers = {}
            for name, engine in order if number % 2 else order[::-1]:
                done = engine.generate(prompt, max_tokens=TOKENS)
                engine.flush()
                answers[name] = done.token_ids
                times.setdefault(f"{turn}, drafts {name}", []).append(done.usage.total_s)
                guessed += done.usage.drafted_tokens
            assert answers["on"] == answers["off"], question
    plain.close()
    drafted.close()
    assert guessed > 0, "no token was guessed right"
    return times


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--questions", type=int, default=10)
    parser.add_argument("--out", type=Path, default=Path("benchmarks/results/drafts.json"))
    options = parser.parse_args()
    transformers_logging.disable_progress_bar()
    questions = [q.text for q in bank.unseen_questions()[: options.questions]]
    with tempfile.TemporaryDirectory() as folder:
        times = measure(Path(folder), questions)
    middle = {name: statistics.median(values) for name, values in times.items()}
    ratios = {
        turn: middle[f"{turn}, drafts off"] / middle[f"{turn}, drafts on"]
        for turn in ("first", "again")
    }
    for name, value in middle.items():
        print(f"{name:20}{value * 1e3:9.0f} ms")
    print({turn: round(ratio, 2) for turn, ratio in ratios.items()})
    report = {"machine": machine(), "off / on": ratios, "seconds": times}
    options.out.write_text(json.dumps(report, indent=1) + "\n")


if __name__ == "__main__":
    main()
