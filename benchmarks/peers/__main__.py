"""Run the race, all workloads or some; a run that was stopped goes on where it was.

    PYTHONPATH=benchmarks:examples/financial_chatbot python -m peers [--workloads table]

Peers that need an environment of their own are skipped with a reason where it is absent; see
`python -m peers.environments --help`. `--rounds` is for the workload `table`, where one round
takes some 40 s with the peers that need no environment; the others are played once.
"""

import argparse
import json
import os
import shutil
import sys
from dataclasses import asdict
from pathlib import Path

from machine import machine
from transformers.utils import logging as transformers_logging

from centroidkv.models.bundled import bundled_folder
from peers.environments import ENVS
from peers.race import Race, read_rows
from peers.report import into_page, report
from peers.roster import SETTINGS, gguf_file, replay_ways, table_ways
from peers.workloads import CONTEXT_TOKENS, WORKLOADS, Workload, make

ROOT = Path(__file__).parents[2]
RESULTS = ROOT / "benchmarks/results/peers"


def main() -> None:
    options = _options()
    transformers_logging.disable_progress_bar()
    settings = [s for s in SETTINGS if not options.settings or s.name in options.settings]
    for name in options.workloads:
        print(f"{name}:", flush=True)
        needed = WORKLOADS[name].needs
        if needed and not (options.data / needed).exists():
            print(f"  left out: there is no {options.data / needed} (--data)")
            continue
        work = options.work / name
        if options.fresh:
            shutil.rmtree(work, ignore_errors=True)
        workload = _workload(name, work, options)
        ways = table_ways(settings) if name == "table" else replay_ways(name)
        ways = [w for w in ways if not options.peers or w.peer.name.split(" [")[0] in options.peers]
        common = {"model": str(bundled_folder("bundled:smollm2")), "gguf": gguf_file(),
                  "threads": options.threads}  # fmt: skip
        race = Race(
            workload, ways, work=work, plan=work / "plan", common=common, envs=options.envs
        )  # fmt: skip
        race.run(options.rounds if name == "table" else len(workload.requests))
        header = {"workload": name, "machine": machine() | {"threads": options.threads}}
        rows = read_rows(race.path)
        if any("way" in r for r in rows):
            text = report(name, rows, [s.name for s in settings], header=header, out=options.out)
            print(text)
            if options.page is not None:
                into_page(options.page, name, text)


def _workload(name: str, work: Path, options: argparse.Namespace) -> Workload:
    """Make a workload, or take the one that an earlier run made with the same options."""
    kept = work / "workload.json"
    run = {"count": options.count, "context_tokens": options.context_tokens,
           "threads": options.threads, "commit": machine()["commit"]}  # fmt: skip
    if kept.exists():
        found = json.loads(kept.read_text("utf-8"))
        if found["run"] != run:
            sys.exit(f"{work} is of another run ({found['run']}, now {run}); add --fresh")
        return Workload(**found["workload"])
    shutil.rmtree(work, ignore_errors=True)
    work.mkdir(parents=True)
    workload = make(
        name, work / "plan", data=options.data, vectors=options.work / "vectors.npz",
        count=options.count, context_tokens=options.context_tokens,
    )  # fmt: skip
    kept.write_text(json.dumps({"run": run, "workload": asdict(workload)}), encoding="utf-8")
    return Workload(**json.loads(kept.read_text("utf-8"))["workload"])


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="peers", description=__doc__)
    parser.add_argument("--workloads", nargs="+", choices=WORKLOADS, default=["table"])
    parser.add_argument("--rounds", type=int, default=12)
    parser.add_argument("--count", type=int, help="requests, documents or sessions of a workload")
    parser.add_argument("--context-tokens", type=int, default=CONTEXT_TOKENS, help="of the table")
    parser.add_argument("--peers", nargs="+", help="only these, such as CAG or ours")
    parser.add_argument("--settings", nargs="+", help="only these settings of ours")
    parser.add_argument("--threads", type=int, default=os.cpu_count())
    parser.add_argument("--data", type=Path, default=ROOT.parent / "shared/data")
    parser.add_argument("--envs", type=Path, default=ENVS)
    parser.add_argument("--work", type=Path, default=Path("/tmp/centroidkv-peers"))
    parser.add_argument("--out", type=Path, default=RESULTS)
    parser.add_argument("--page", type=Path, help="put the tables into this page")
    parser.add_argument("--fresh", action="store_true", help="forget what earlier runs measured")
    return parser.parse_args()


if __name__ == "__main__":
    main()
