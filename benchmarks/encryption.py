"""What an encrypted store costs beside one in the clear, by turns in one run.

- the time to the first token of a hit whose KV is read from disk, and a miss to its last token
- writing and reading the file of one block
- the longest prefix behind a block with 100, 1,000 and 10,000 children, which are all looked at

    PYTHONPATH=examples/financial_chatbot python benchmarks/encryption.py [--rounds 12]
"""

import argparse
import base64
import json
import statistics
import tempfile
import time
from collections import defaultdict
from pathlib import Path
from typing import Any

from machine import machine
from overhead import answer, prompt

from centroidkv import Engine
from centroidkv.kv.blocks import block_id, namespace_id
from centroidkv.kv.codec import load_block, save_block
from centroidkv.kv.manifest import BlockRow, Manifest
from centroidkv.types import KVBlock
from centroidkv.vault import IN_THE_CLEAR, SealedVault

VAULTS = {"clear": IN_THE_CLEAR, "sealed": SealedVault(bytes(32))}
KEYS = {"clear": None, "sealed": base64.b64encode(bytes(32)).decode()}
ROOT = namespace_id("benchmark")

Times = dict[str, list[float]]


def requests(folder: Path, rounds: int, times: Times) -> KVBlock:
    """Time hits from disk and misses; return a block of the model's."""
    engines = {
        name: Engine.open(folder / name, memory_budget_bytes=0, encryption_key=key, drafts=False)
        for name, key in KEYS.items()
    }
    for engine in engines.values():
        engine.generate(prompt(10_000), max_tokens=2, reuse="off")
        engine.generate(prompt(0), max_tokens=1)
        engine.flush()
    for number in range(rounds):
        question = f"How long does it take, for the {number}th time?"
        for name in sorted(engines, reverse=bool(number % 2)):
            engine = engines[name]
            hit = answer(engine, prompt(0, question), "exact", "disk")
            times[f"hit from disk, {name}"].append(hit["ttft_s"])
            began = time.perf_counter()
            engine.generate(prompt(20_000 + number, num_passages=4), max_tokens=16)
            times[f"miss, {name}"].append(time.perf_counter() - began)
            engine.flush()
    row = next(r for r in engines["clear"].store.blocks.disk.manifest.rows())
    block = engines["clear"].store.blocks.disk.read(row)
    assert block is not None
    for engine in engines.values():
        engine.close()
    return block


def files(folder: Path, block: KVBlock, times: Times) -> None:
    """Time writing and reading the file of a block."""
    tokens = range(block.num_tokens)
    ids = (block_id(ROOT, tokens), ROOT, ROOT)
    for number in range(100):
        for name in sorted(VAULTS, reverse=bool(number % 2)):
            path, vault = folder / f"{name}.block", VAULTS[name]
            began = time.perf_counter()
            save_block(path, block, ids=ids, token_ids=tokens, vault=vault)
            written = time.perf_counter()
            load_block(path, vault)
            times[f"write a block, {name}"].append(written - began)
            times[f"read a block, {name}"].append(time.perf_counter() - written)


def children(times: Times) -> None:
    """Time finding the neighbours among many children: the first time, and later ones."""
    for count in (100, 1_000, 10_000):
        for name, vault in VAULTS.items():
            manifest = Manifest(Path(":memory:"), vault=vault)
            tokens = [(1, number, 2) for number in range(count)]
            manifest.add(*(BlockRow(block_id(ROOT, t), ROOT, ROOT, t, 1) for t in tokens))
            for number in range(31):
                began = time.perf_counter()
                manifest.neighbours(ROOT, (1, number * 3 % count, 3))
                when = "first" if number == 0 else "later"
                times[f"{count} children, {when}, {name}"].append(time.perf_counter() - began)
            manifest.close()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=12)
    parser.add_argument("--out", type=Path, default=Path("benchmarks/results/encryption.json"))
    options = parser.parse_args()
    times: Times = defaultdict(list)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        files(folder, requests(folder, options.rounds, times), times)
    children(times)
    rows: dict[str, Any] = {}
    for what in [key.removesuffix(", clear") for key in times if key.endswith(", clear")]:
        clear, sealed = (statistics.median(times[f"{what}, {kind}"]) for kind in VAULTS)
        rows[what] = {"clear_ms": 1e3 * clear, "sealed_ms": 1e3 * sealed, "ratio": sealed / clear}
        print(f"{what:28} {1e3 * clear:9.2f} {1e3 * sealed:9.2f} ms {sealed / clear:6.2f}")
    options.out.write_text(json.dumps({"machine": machine(), "rows": rows}, indent=1) + "\n")


if __name__ == "__main__":
    main()
