"""Many processes on one store with a small budget: right answers, one computation a prefix.

Half of the processes route by a Chroma server. Run: python tests/stress/crowd.py [--quick]
"""

import argparse
import os
import sqlite3
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[1]))
os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")

import torch
from bank_load import Load, open_engine
from branches import Branch, finished, in_branch
from told import broken, told

from centroidkv.kv.blocks import BLOCK_TOKENS, block_id, chain
from centroidkv.kv.disk import DiskBlocks
from centroidkv.serving.sharing import LEAST_TOKENS
from centroidkv.types import KVBlock
from chroma_process import ChromaProcess

# Some six of the twelve families' prefixes.
BUDGET_BYTES = 2_000_000
# A process that the machine does not run must not make others compute what it computes.
PATIENCE_S = 20.0
# Every block that is stored, however short it stays, in a table that only this script makes.
DIARY = """
CREATE TABLE diary (id TEXT NOT NULL);
CREATE TRIGGER diary_kept AFTER INSERT ON blocks BEGIN INSERT INTO diary VALUES (NEW.id); END;
"""


def build(folder: Path, url: str) -> None:
    with open_engine(folder, chroma=url) as engine:
        Load(engine, 0).build()


def work(folder: Path, url: str | None, seed: int, seconds: float) -> dict[str, Any]:
    """Ask for so many seconds; return counts and the blocks computed because nobody had them.

    `orphaned` are blocks that were computed and not kept, as one before them was evicted meanwhile.
    """
    torch.set_num_threads(1)
    counts: Counter[str] = Counter()
    computed: Counter[str] = Counter()
    orphaned: Counter[str] = Counter()
    memory = 8_000_000  # so small that the disk is read
    settings = {"disk_budget_bytes": BUDGET_BYTES, "memory_budget_bytes": memory, "chroma": url}
    with open_engine(folder, **settings) as engine:
        engine.store.flights.patience_s = PATIENCE_S
        note_orphans(engine.store.blocks.disk, orphaned)
        load, end = Load(engine, seed), time.monotonic() + seconds
        while time.monotonic() < end:
            asked = load.ask(load.question())
            usage = asked.completion.usage
            counts["requests"] += 1
            counts["wrong"] += not asked.is_right and not asked.is_near
            counts["near_ties"] += asked.is_near
            counts[usage.outcome] += 1
            counts["index_failures"] = engine.router.num_index_failures
            had = usage.reused_tokens + usage.unloaded_tokens
            blocks = full_blocks(engine, asked.prompt, had)
            # Less is computed sooner than waited for, and what only a question has is not kept.
            if len(blocks) * BLOCK_TOKENS >= LEAST_TOKENS and usage.outcome != "hit":
                computed.update(blocks)
        engine.flush()
        counts["dropped"] = engine.store.writer.num_dropped
        counts["failed"] = engine.store.writer.num_failed
    return {"counts": counts, "computed": computed, "orphaned": orphaned}


def note_orphans(disk: DiskBlocks, orphaned: Counter[str]) -> None:
    """Count by id the blocks that a disk could not keep."""
    put = disk.put

    def noting(parent: str, token_ids: Sequence[int], block: KVBlock) -> str | None:
        kept = put(parent, token_ids, block)
        orphaned[block_id(parent, token_ids)] += kept is None
        return kept

    disk.put = noting  # type: ignore[method-assign]


def full_blocks(engine: Any, prompt: str, had: int) -> list[str]:
    """Return the full blocks of a prompt behind its first `had` tokens."""
    ids = engine.model.encode(prompt).token_ids
    end = (len(ids) - 1) // BLOCK_TOKENS * BLOCK_TOKENS
    namespace = engine._learner.namespace
    return [link.id for link in chain(namespace, ids[:end], had - had % BLOCK_TOKENS)]


def watch(folder: Path, branches: list[Branch]) -> dict[str, int]:
    """Look at the bytes of the block files, and at those noted, while anybody writes."""
    most_noted = most_lying = largest = looks = 0
    db = sqlite3.connect(folder / "manifest.sqlite", timeout=30)
    while sum(branch.poll() for branch in branches):
        query = "SELECT value FROM counters WHERE name = 'disk_bytes'"
        most_noted = max([most_noted, *(row[0] for row in db.execute(query))])
        sizes = [0, *file_sizes(folder / "blocks")]
        most_lying, largest, looks = max(most_lying, sum(sizes)), max(largest, *sizes), looks + 1
        time.sleep(0.005)
    db.close()
    found = {"noted_bytes": most_noted, "lying_bytes": most_lying, "block_bytes": largest}
    return {**found, "looks": looks}


def file_sizes(blocks: Path) -> Iterable[int]:
    for folder in blocks.glob("??"):
        with os.scandir(folder) as entries:
            for entry in entries:
                try:
                    yield entry.stat().st_size
                except FileNotFoundError:  # renamed or evicted in this moment
                    continue


def check(folder: Path, url: str) -> dict[str, Any]:
    with open_engine(folder, chroma=url, disk_budget_bytes=BUDGET_BYTES) as engine:
        report, stats = engine.check(), engine.stats()
        wanted = (
            "waited_fills",
            "abandoned_waits",
            "evicted_blocks",
            "orphaned_blocks",
            "damaged_blocks",
        )
        counters = {name: stats.counters.get(name, 0) for name in wanted}
        return {"problems": report.problems, "num_blocks": report.num_blocks, **counters}


def run(folder: Path, processes: int, seconds: float) -> dict[str, Any]:
    store = folder / "store"
    with ChromaProcess(folder / "server") as chroma:
        in_branch(lambda: build(store, chroma.url))
        db = sqlite3.connect(store / "manifest.sqlite")
        db.executescript(DIARY)
        db.close()
        urls = [chroma.url if n % 2 == 0 else None for n in range(processes)]
        jobs = [
            lambda n=n, url=url: work(store, url, n, seconds)  # type: ignore[misc]
            for n, url in enumerate(urls)
        ]
        branches = [Branch(job) for job in jobs]
        seen = watch(store, branches)
        done = finished(branches, 60)
        checked = in_branch(lambda: check(store, chroma.url))
    counts: Counter[str] = Counter()
    computed: Counter[str] = Counter()
    orphaned: Counter[str] = Counter()
    for one in done:
        counts.update(one["counts"])
        computed.update(one["computed"])
        orphaned.update(one["orphaned"])
    db = sqlite3.connect(store / "manifest.sqlite")
    kept = Counter(row[0] for row in db.execute("SELECT id FROM diary"))
    db.close()
    again = (computed - kept - orphaned).total()
    total = {
        "computed_blocks": computed.total(),
        "computed_again": again,
        "for_orphans": (computed - kept).total() - again,
    }
    return {"script": "crowd", "processes": processes, **counts, **total, **seen, **checked}


def violations(found: dict[str, Any]) -> list[str]:
    """Return the promises that were broken."""
    bound = BUDGET_BYTES + found["processes"] * found["block_bytes"]
    promises = {
        "wrong answers": found.get("wrong", 0) > 0,
        "no requests": found["requests"] < found["processes"],
        "the store is not clean": bool(found["problems"]),
        "over the budget by more than a block a writer": found["lying_bytes"] > bound,
        "over the budget in the manifest": found["noted_bytes"] > BUDGET_BYTES,
        "blocks computed again": found["computed_again"] > 0,
        "nothing was evicted": found["evicted_blocks"] == 0,
        "blocks were damaged": found["damaged_blocks"] > 0,
    }
    return broken(promises)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true", help="three processes, eight seconds")
    parser.add_argument("--processes", type=int, default=8)
    parser.add_argument("--seconds", type=float, default=300)
    options = parser.parse_args()
    torch.set_num_threads(1)
    processes, seconds = (3, 8.0) if options.quick else (options.processes, options.seconds)
    with tempfile.TemporaryDirectory(prefix="crowd-") as folder:
        found = run(Path(folder), processes, seconds)
    return told(found, violations(found))


if __name__ == "__main__":
    sys.exit(main())
