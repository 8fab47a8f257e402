"""A mixed load for an hour at fixed memory: RSS, file handles and threads stay what they were.

    python tests/stress/soak.py [--quick] [--minutes N] [--own-heaps]

What a process asked for and gave back, glibc keeps in a heap for each thread; these fill up for
half an hour and more before they are as large as they get. So the process starts again with one
heap, and gives back what is free in it now and then, as docs/processes.md advises; with
`--own-heaps` it does neither.
"""

import argparse
import ctypes
import gc
import json
import os
import statistics
import sys
import tempfile
import threading
import time
from collections import Counter
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[2] / "benchmarks"))
sys.path.insert(0, str(Path(__file__).parents[1]))
os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")

import torch
from bank_load import NUM_FAMILIES, Load, open_engine
from heap import heap_state
from told import broken, told

from centroidkv import Engine
from centroidkv.routing.exclusion import Exclusion
from chroma_process import ChromaProcess

NUM_CLIENTS = 3
MEMORY_BYTES = 16_000_000
DISK_BYTES = 8_000_000
MOST_GROWTH = 0.02
MOST_HANDLES = 2
NUM_RESTS = 20
# A bound on each turns off that glibc raises it.
HEAPS = {
    "MALLOC_ARENA_MAX": "1",
    "MALLOC_MMAP_THRESHOLD_": "131072",
    "MALLOC_TRIM_THRESHOLD_": "131072",
}
PAGE_BYTES = os.sysconf("SC_PAGE_SIZE")
# A tokenizer keeps so many words that it has met, and their tokens, for each thread that asks.
TOKENIZER_WORDS = 10_000
# Python's table of names doubles once (3.8 MB) after so many parts of paths that it has met.
PATH_NAMES = 120_000


class Client:
    """Asks, streams, breaks off, lets time run out, uses tenants: what a day brings."""

    def __init__(self, engine: Engine, seed: int) -> None:
        self._engine = engine
        self.load = Load(engine, seed)
        self._other = Load(engine.for_tenant(f"tenant {seed % 2}"), seed)
        self.counts: Counter[str] = Counter()
        self._number = seed

    def step(self) -> None:
        """Make one request of some kind."""
        self._number += 1
        kind = self.load.random.choices(
            ["ask", "tenant", "new", "broken_off", "timeout", "conversation"],
            [60, 15, 10, 5, 5, 5],
        )[0]
        self.counts[kind] += 1
        getattr(self, f"_{kind}")()

    def _ask(self) -> None:
        asked = self.load.ask(self.load.question())
        self.counts["wrong"] += not asked.is_right and not asked.is_near

    def _tenant(self) -> None:
        asked = self._other.ask(self._other.question())
        self.counts["wrong"] += not asked.is_right and not asked.is_near

    def _new(self) -> None:
        words = f"{self._number} {self.load.random.random()} of the bank. " * 30
        self._engine.generate(words, max_tokens=2)

    def _broken_off(self) -> None:
        answer = self._engine.stream(f"Tell me about {self.load.question()} " * 8, max_tokens=30)
        next(answer)
        answer.close()

    def _timeout(self) -> None:
        try:
            self._engine.generate(self.load.question() * 8, max_tokens=200, timeout_s=0.02)
        except TimeoutError:
            self.counts["timed_out"] += 1

    def _conversation(self) -> None:
        turns = [{"role": "user", "content": self.load.question()}]
        for _ in range(3):
            done = self._engine.generate(turns, max_tokens=8)
            turns += [{"role": "assistant", "content": done.text or "-"}]
            turns += [{"role": "user", "content": self.load.question()}]


def drive(client: Client, gate: Exclusion, stop: threading.Event, errors: list[str]) -> None:
    meet_words(client.load.engine)
    while not stop.is_set():
        try:
            with gate.together():
                client.step()
        except Exception as error:  # noqa: BLE001 - what is counted here
            errors.append(f"{type(error).__name__}: {error}")


def look(engine: Engine) -> dict[str, float]:
    """Return what the process holds now.

    `in_use` and `free` are bytes of glibc's heap, `objects` the pieces of Python's own, `queued`
    the bytes that wait to be written, in so many `jobs`.
    """
    gc.collect()
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    heap = heap_state()
    return {
        "rss": pages * PAGE_BYTES,
        "in_use": heap.in_use,
        "free": heap.free,
        "objects": sys.getallocatedblocks(),
        "queued": engine.store.writer.waiting_bytes,
        "jobs": engine.store.writer.num_waiting,
        "handles": len(list(Path("/proc/self/fd").iterdir())),
        "threads": threading.active_count(),
    }


def rest(engine: Engine, gate: Exclusion) -> dict[str, float]:
    """Look while no request is under way and nothing waits to be written."""
    with gate.alone():
        engine.flush()
        give_back()
        return look(engine)


def give_back() -> None:
    """Give what is free in the heap back, as docs/processes.md advises."""
    if HEAPS.items() <= os.environ.items():
        ctypes.CDLL(None).malloc_trim(0)


def upkeep(engine: Engine, number: int) -> None:
    """Do now and then what an operator does: look, check, try a version, pin."""
    engine.stats()
    give_back()
    if number % 4 == 0:
        engine.check()
    if number % 6 == 1:
        engine.pins.add(number % 3)
    if number % 6 == 4:
        for pinned in engine.pins.all():
            engine.pins.remove(pinned.cluster)
    if number % 10 == 5:
        Load(engine, number).build(NUM_FAMILIES - number // 10 % 3)


def run(folder: Path, seconds: float) -> dict[str, Any]:
    stop, errors = threading.Event(), []  # type: ignore[var-annotated]
    gate = Exclusion()
    looks: list[dict[str, float]] = []
    rests: list[dict[str, float]] = []
    settings = {"memory_budget_bytes": MEMORY_BYTES, "disk_budget_bytes": DISK_BYTES}
    with (
        ChromaProcess(folder / "server") as chroma,
        open_engine(folder / "store", chroma=chroma.url, **settings) as engine,
    ):
        Load(engine, 0).build()
        meet_words(engine)
        meet_paths()
        clients = [Client(engine, n) for n in range(NUM_CLIENTS)]
        threads = [
            threading.Thread(target=drive, args=(c, gate, stop, errors), name="client")
            for c in clients
        ]
        for one in threads:
            one.start()
        began, number = time.monotonic(), 0
        while time.monotonic() < began + seconds:
            time.sleep(min(5.0, seconds / 40))
            looks.append(look(engine))
            number += 1
            if number % 6 == 0:
                upkeep(engine, number // 6)
            if number % 60 == 0:
                note(looks, clients, errors, began)
            if len(rests) < (time.monotonic() - began) / seconds * NUM_RESTS:
                rests.append(rest(engine, gate))
        stop.set()
        for one in threads:
            one.join(60)
        report, stats = engine.check(), engine.stats()
    counts: Counter[str] = sum((c.counts for c in clients), Counter())
    return {
        "script": "soak",
        "seconds": round(seconds),
        **counts,
        **grown(looks),
        **grown(rests, "rest_"),
        "errors": errors[:3],
        "num_errors": len(errors),
        "problems": report.problems,
        "dropped_writes": stats.dropped_writes,
        "failed_writes": stats.failed_writes,
    }


def meet_words(engine: Engine) -> None:
    """Bring the tokenizer's table of this thread to the size that a long run gives it."""
    engine.model.count_tokens(" ".join(map(str, range(10**12, 10**12 + TOKENIZER_WORDS))))


def meet_paths() -> None:
    """Bring Python's table of names to the size that a long run gives it."""
    for number in range(PATH_NAMES):
        sys.intern(f"a name met once: {number}")


def grown(looks: list[dict[str, float]], kind: str = "") -> dict[str, Any]:
    """Compare the last tenth with the second one: the first is for warming up."""
    tenth = max(1, len(looks) // 10)
    early, late = looks[tenth : 2 * tenth] or looks[:1], looks[-tenth:]
    found: dict[str, Any] = {f"{kind}looks": len(looks)}
    for name in looks[0]:
        before, after = (statistics.median(x[name] for x in part) for part in (early, late))
        found |= {f"{kind}{name}_before": before, f"{kind}{name}_after": after}
    growth = found[f"{kind}rss_after"] / found[f"{kind}rss_before"] - 1
    return {**found, f"{kind}rss_growth": round(growth, 4)}


def note(
    looks: list[dict[str, float]], clients: list[Client], errors: list[str], began: float
) -> None:
    """Say how it goes, for who watches."""
    counts: Counter[str] = sum((c.counts for c in clients), Counter())
    line = {"minute": round((time.monotonic() - began) / 60, 1), **looks[-1], **grown(looks)}
    print(json.dumps({**line, **counts, "num_errors": len(errors)}), flush=True)


def violations(found: dict[str, Any], *, is_quick: bool) -> list[str]:
    """Return the promises that were broken; in seconds there is no steady state to measure."""
    promises = {
        "wrong answers": found.get("wrong", 0) > 0,
        "failed requests": found["num_errors"] > 0,
        "the store is not clean": bool(found["problems"]),
        "memory grows": not is_quick and found["rss_growth"] > MOST_GROWTH,
        "handles leak": not is_quick
        and found["handles_after"] > found["handles_before"] + MOST_HANDLES,
        "threads leak": found["threads_after"] > found["threads_before"] + MOST_HANDLES,
    }
    return broken(promises)


def with_one_heap() -> None:
    """Start again with settings of glibc's that it reads at the start alone."""
    if HEAPS.items() <= os.environ.items():
        return
    os.execve(sys.executable, [sys.executable, *sys.argv], {**os.environ, **HEAPS})


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true", help="twenty seconds, memory not judged")
    parser.add_argument("--minutes", type=float, default=60)
    parser.add_argument("--own-heaps", action="store_true", help="as glibc has them by default")
    options = parser.parse_args()
    if not (options.quick or options.own_heaps):
        with_one_heap()
    torch.set_num_threads(1)
    seconds = 15.0 if options.quick else options.minutes * 60
    with tempfile.TemporaryDirectory(prefix="soak-") as folder:
        found = run(Path(folder), seconds)
    return told(found, violations(found, is_quick=options.quick))


if __name__ == "__main__":
    sys.exit(main())
