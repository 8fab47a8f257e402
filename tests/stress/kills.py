"""Processes killed at random moments: every store opens, nothing finished is lost, no answer wrong.

    python tests/stress/kills.py [--quick] [--rounds 1000] [--seed 1]

Each round lets a child build, warm, serve, refit, roll back or repair a store, and kills it
(SIGKILL) at a moment drawn over the time that takes. Another child then opens the store, asks,
compares with answers computed anew, and looks for what was promised before the kill: what a
`flush` that returned had stored, answers that were kept, a plan that was put in force. Two stores
take turns: one with room for everything, one that is encrypted and whose disk budget is far too
small.
"""

import argparse
import collections
import json
import os
import random
import shutil
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from branches import Branch, run
from stress_parts import NEW_QUESTIONS, SEALED, answers_differ, open_engine
from told import told

from centroidkv import Engine
from centroidkv.serving.answers import Answer
from word_bank import QUESTIONS, ask, search

SMALL = 400_000  # bytes: some fifth of what the acts would store
EVERY = 25  # rounds after which a store is checked, repaired and checked again
NEW_STORE = 40


class Journal:
    """What was promised, one line each, written before the next thing begins."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def note(self, **promise: Any) -> None:
        with self.path.open("a") as file:
            file.write(json.dumps(promise) + "\n")
            file.flush()
            os.fsync(file.fileno())

    def promises(self) -> list[dict[str, Any]]:
        if not self.path.exists():
            return []
        lines = self.path.read_text().splitlines()
        return [json.loads(line) for line in lines if line.endswith("}")]


def _build(engine: Engine, journal: Journal, chance: random.Random) -> None:
    questions = [*QUESTIONS, *NEW_QUESTIONS[: chance.randrange(3)]]
    report = engine.build(
        questions=questions,
        retriever=search,
        num_clusters=chance.choice([2, 3]),
        max_pins=1,
        pca_dim=8,
    )
    journal.note(plan=report.plan_id)
    engine.warm(lambda q: ask(engine, q))
    engine.flush()


def _serve(engine: Engine, journal: Journal, chance: random.Random) -> None:
    for _ in range(6):
        ask(engine, chance.choice([*QUESTIONS, *NEW_QUESTIONS]))
        number = chance.randrange(40)
        prompt = f"Note {number}: " + f"the account number {number} was opened and closed. " * 6
        usage = engine.generate(prompt, max_tokens=4).usage
        engine.flush()
        journal.note(prompt=prompt, num_tokens=usage.prompt_tokens)
        text = f"answer {number}"
        vector = engine.router.embedder.embed([text])[0]
        engine.answers.put(Answer(f"id{number}", text, text, 0.0), scope="", vector=vector)
        journal.note(answer=f"id{number}", text=text)


def _refit(engine: Engine, journal: Journal, chance: random.Random) -> None:
    if engine.router.plan is None:
        return
    engine.refit(lambda q: ask(engine, q))
    engine.flush()
    journal.note(plan=engine.router.plan.id)


def _roll_back(engine: Engine, journal: Journal, chance: random.Random) -> None:
    plans = [plan.version for plan in engine.versions.kept()]
    if plans:
        engine.versions.use(chance.choice(plans))


def _repair(engine: Engine, journal: Journal, chance: random.Random) -> None:
    engine.check(repair=True)


ACTS: dict[str, Callable[[Engine, Journal, random.Random], None]] = {
    "build": _build,
    "serve": _serve,
    "refit": _refit,
    "roll back": _roll_back,
    "repair": _repair,
}


class Rounds:
    """Kills children and looks at what they leave."""

    def __init__(self, folder: Path, chance: random.Random) -> None:
        self._folder = folder
        self._chance = chance
        self._seconds: dict[tuple[str, bool], float] = {}
        self.counts: collections.Counter[str] = collections.Counter()
        self.violations: list[str] = []

    def measure(self) -> None:
        """Let every act run to its end once, to know how long it takes."""
        for is_small in (False, True):
            for name in ACTS:
                began = time.monotonic()
                done = run(lambda n=name, s=is_small: self._act(n, s, 0), timeout_s=120)
                self._seconds[name, is_small] = time.monotonic() - began
                if not done.is_well:
                    self.violations.append(f"{name} fails without a kill: {done}")

    def play(self, number: int) -> None:
        """Run one act, kill it, look at the store."""
        is_small = number % 2 == 1
        if number % NEW_STORE < 2:
            shutil.rmtree(self._path(is_small), ignore_errors=True)
            self._journal(is_small).path.unlink(missing_ok=True)
        name = self._chance.choice(sorted(ACTS))
        seed = self._chance.randrange(1 << 30)
        log = self._folder / "child.log"
        log.unlink(missing_ok=True)
        child = Branch(lambda: self._act(name, is_small, seed), log=log)
        time.sleep(self._chance.uniform(0, self._seconds[name, is_small]))
        child.kill()
        done = child.done(30)
        if done.error and not done.signal:
            self.violations.append(
                f"round {number}: {name} failed: {done}\n{log.read_text()[-900:]}"
            )
        self.counts[f"{name}, {'killed' if done.signal else 'ended before'}"] += 1
        log.unlink(missing_ok=True)
        seen = run(lambda: self._look(is_small, number), timeout_s=60, log=log)
        if not seen.is_well or seen.value:
            told = f"round {number}: after {name}: {seen}"
            self.violations.append(f"{told}\n{log.read_text()[-1200:]}")

    def _path(self, is_small: bool) -> Path:
        return self._folder / ("small" if is_small else "large")

    def _journal(self, is_small: bool) -> Journal:
        return Journal(self._folder / f"journal-{is_small}")

    def _open(self, is_small: bool) -> Engine:
        settings = {"disk_budget_bytes": SMALL, **SEALED} if is_small else {}
        return open_engine(self._path(is_small), near_misses=2, **settings)

    def _act(self, name: str, is_small: bool, seed: int) -> None:
        with self._open(is_small) as engine:
            ACTS[name](engine, self._journal(is_small), random.Random(seed))

    def _look(self, is_small: bool, number: int) -> list[str]:
        """Return what is wrong with a store after a kill."""
        wrong = []
        with self._open(is_small) as engine:
            promises = self._journal(is_small).promises()
            wrong += [
                f"wrong answer to {q}"
                for q in answers_differ(engine, [QUESTIONS[0], NEW_QUESTIONS[0]])
            ]
            wrong += _lost_answers(engine, promises)
            wrong += _lost_plan(engine, promises)
            if not is_small:
                wrong += _lost_prompts(engine, promises[-12:])
            elif (held := engine.stats().disk_bytes) > SMALL:
                wrong.append(f"{held} bytes on disk")
            if number % EVERY < 2:
                engine.check(repair=True)
                wrong += engine.check().problems
        return wrong


def _lost_prompts(engine: Engine, promises: list[dict[str, Any]]) -> list[str]:
    wrong = []
    for promise in promises:
        if "prompt" not in promise:
            continue
        usage = engine.generate(promise["prompt"], max_tokens=1).usage
        held = usage.reused_tokens + usage.unloaded_tokens  # these were there, computing was faster
        if held < promise["num_tokens"] - 1:
            wrong.append(f"{promise['prompt'][:12]}: {held} tokens are left")
    return wrong


def _lost_answers(engine: Engine, promises: list[dict[str, Any]]) -> list[str]:
    kept = {p["answer"]: p["text"] for p in promises if "answer" in p}
    found = {own: engine.answers.get(own) for own in kept}
    return [
        f"answer {own} is lost" for own, a in found.items() if a is None or a.answer != kept[own]
    ]


def _lost_plan(engine: Engine, promises: list[dict[str, Any]]) -> list[str]:
    if not any("plan" in p for p in promises):
        return []
    return [] if engine.router.plan is not None else ["no plan is in force"]


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="15 rounds")
    parser.add_argument("--rounds", type=int, default=1000)
    parser.add_argument("--seed", type=int, default=1)
    options = parser.parse_args()
    number = 15 if options.quick else options.rounds
    with tempfile.TemporaryDirectory() as folder:
        rounds = Rounds(Path(folder), random.Random(options.seed))
        rounds.measure()
        for i in range(number):
            rounds.play(i)
    return told({"rounds": number, **dict(sorted(rounds.counts.items()))}, rounds.violations)


if __name__ == "__main__":
    sys.exit(main())
