"""A Chroma server that goes and comes back under load: no failed request, quick hits.

By turns it is killed, it is stopped, and a proxy in front of it answers `/` and hangs otherwise.

Run: python tests/stress/chroma_restart.py [--quick] [--rounds N]
"""

import argparse
import os
import sys
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[1]))
os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")

import torch
from bank_load import Load, open_engine
from told import broken, told

from chroma_process import ChromaProcess
from half_dead_proxy import HalfDeadProxy

NUM_CLIENTS = 3
# How soon after its return the server is asked again.
RETURN_S = 5.0
# The longest a question may be routed while the server is gone: two calls that time out, at most.
ROUTE_S = 5.0
QUIET_S = 0.02  # a route that does not ask a server

__all__ = ["main"]


@dataclass
class Seen:
    """What the clients saw, by all threads."""

    counts: Counter[str] = field(default_factory=Counter)
    routes: list[tuple[float, float]] = field(default_factory=list)  # (when, seconds)
    errors: list[str] = field(default_factory=list)


def client(load: Load, seen: Seen, stop: threading.Event) -> None:
    while not stop.is_set():
        try:
            began = time.monotonic()
            asked = load.ask(load.question())
        except Exception as error:  # noqa: BLE001 - what is counted here
            seen.errors.append(f"{type(error).__name__}: {error}")
            continue
        route_s = asked.completion.usage.route_s
        seen.routes.append((began, route_s))
        seen.counts["requests"] += 1
        seen.counts["wrong"] += not asked.is_right and not asked.is_near
        seen.counts[asked.completion.usage.outcome] += 1


def is_asked(engine: Any) -> bool:
    """Tell whether a question is routed by the server, and not from memory."""
    failures = engine.router.num_index_failures
    engine.route("block my card card please")
    return engine.router.num_index_failures == failures


def returned_after(engine: Any) -> float:
    """Wait until the server is asked again; return the seconds."""
    began = time.monotonic()
    while not is_asked(engine):
        if time.monotonic() - began > 4 * RETURN_S:
            return float("inf")
        time.sleep(0.05)
    return time.monotonic() - began


def away(engine: Any, seen: Seen, seconds: float, leave: Callable[[], None]) -> dict[str, float]:
    """Let the server go for so many seconds; return how long routing took meanwhile."""
    leave()
    began = time.monotonic()
    time.sleep(seconds)
    routes = [r for r in list(seen.routes) if r[0] >= began]
    late = sorted(s for at, s in routes if at > began + seconds / 2)
    return {
        "requests": len(routes),
        "longest_s": max((s for _, s in routes), default=0.0),
        "late_median_s": late[len(late) // 2] if late else float("inf"),
        "is_open": float(engine.store.centroids.server_state != "closed"),
    }


def run(folder: Path, rounds: int, seconds: float) -> dict[str, Any]:
    seen, stop = Seen(), threading.Event()
    returns: list[float] = []
    spells: list[dict[str, float]] = []
    with ChromaProcess(folder / "server") as chroma, HalfDeadProxy(chroma.url) as proxy:
        ways = [(chroma.kill, chroma.start), (chroma.hang, chroma.go_on), (proxy.hang, proxy.go_on)]
        with open_engine(folder / "store", chroma=proxy.url) as engine:
            Load(engine, 0).build()
            assert is_asked(engine), "the server is not asked to begin with"
            clients = [
                threading.Thread(target=client, args=(Load(engine, n), seen, stop))
                for n in range(NUM_CLIENTS)
            ]
            for one in clients:
                one.start()
            for number in range(rounds):
                leave, come_back = ways[number % len(ways)]
                spells.append(away(engine, seen, seconds, leave))
                come_back()
                returns.append(returned_after(engine))
                time.sleep(seconds / 4)
            stop.set()
            for one in clients:
                one.join(60)
            hangs = sum(one.is_alive() for one in clients)
            report, counters = engine.check(), engine.stats().counters
            names = [t.name for t in threading.enumerate() if t.name == "centroidkv-index"]
        losses = {n: counters.get(n, 0) for n in ("index_losses", "index_returns")}
    return {
        "script": "chroma_restart",
        "rounds": rounds,
        **seen.counts,
        "errors": seen.errors[:3],
        "returns_s": [round(s, 2) for s in returns],
        "spells": spells,
        "hanging_clients": hangs,
        "threads_left": len(names),
        "problems": report.problems,
        **losses,
    }


def violations(found: dict[str, Any]) -> list[str]:
    """Return the promises that were broken."""
    spells = found["spells"]
    promises = {
        "failed requests": bool(found["errors"]) or found["hanging_clients"] > 0,
        "wrong answers": found["wrong"] > 0,
        "no requests while the server was gone": not all(s["requests"] for s in spells),
        "the server was not left alone": not all(s["is_open"] for s in spells),
        "back too late": max(found["returns_s"]) > RETURN_S,
        "a request waited for the server": max(s["longest_s"] for s in spells) > ROUTE_S,
        "a dead server costs time": max(s["late_median_s"] for s in spells) > QUIET_S,
        "the store is not clean": bool(found["problems"]),
        "threads are left": found["threads_left"] > 0,
    }
    return broken(promises)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true", help="gone once in each way")
    parser.add_argument("--rounds", type=int, default=21)
    parser.add_argument("--seconds", type=float, default=6, help="gone for so long")
    options = parser.parse_args()
    torch.set_num_threads(1)
    rounds, seconds = (3, 4.5) if options.quick else (options.rounds, options.seconds)
    with tempfile.TemporaryDirectory(prefix="chroma-restart-") as folder:
        found = run(Path(folder), rounds, seconds)
    return told(found, violations(found))


if __name__ == "__main__":
    sys.exit(main())
