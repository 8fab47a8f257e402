"""What a small page cache costs a store's SQLite files: lookups and writes, by turns.

Drafts (20,000 answers) and a manifest (200,000 blocks) are made once and copied for each size, so
that no connection's writes empty another one's cache. Random rows, every operation on each copy in
changing order; the system holds the files' pages, as it does in a store that is in use.

    python benchmarks/page_caches.py
"""

import json
import random
import shutil
import statistics
import tempfile
import time
from collections import defaultdict
from collections.abc import Callable
from functools import partial
from pathlib import Path

from machine import machine

from centroidkv.kv.blocks import block_id, namespace_id
from centroidkv.kv.manifest import BlockRow, Manifest
from centroidkv.serving.drafts import DraftStore

SIZES_KIB = (2000, 512, 256, 128)
NUM_DRAFTS, NUM_CHAINS, CHAIN_BLOCKS = 20_000, 20_000, 10
WARM_UP, ROUNDS = 500, 1500
NAMESPACE = namespace_id("kv", "page caches")
CHANCE = random.Random(0)


def tokens(count: int) -> tuple[int, ...]:
    return tuple(CHANCE.randrange(50_000) for _ in range(count))


def block_after(parent: str) -> BlockRow:
    ids = tokens(64)
    return BlockRow(block_id(parent, ids), parent, NAMESPACE, ids, 50_000)


def filled_drafts(folder: Path) -> list[tuple[int, ...]]:
    prompts = [tokens(200) for _ in range(NUM_DRAFTS)]
    store = DraftStore(folder / "drafts.sqlite", NAMESPACE, quarantine=folder)
    for number, prompt in enumerate(prompts):
        store.keep(prompt, f"cluster {number % 400}", prompt[:40])
    store.close()
    return prompts


def filled_manifest(folder: Path) -> list[list[str]]:
    manifest, chains = Manifest(folder / "manifest.sqlite"), []
    for _ in range(NUM_CHAINS):
        rows: list[BlockRow] = []
        for _ in range(CHAIN_BLOCKS):
            rows.append(block_after(rows[-1].id if rows else NAMESPACE))
        manifest.add(*rows)
        chains.append([row.id for row in rows])
    manifest.close()
    return chains


class Copy:
    """One store's drafts and manifest, with page caches of one size."""

    def __init__(self, made: Path, size_kib: int) -> None:
        folder = made / str(size_kib)
        folder.mkdir()
        for file in made.glob("*.sqlite"):
            shutil.copy(file, folder)
        self._drafts = DraftStore(folder / "drafts.sqlite", NAMESPACE, quarantine=folder)
        self._manifest = Manifest(folder / "manifest.sqlite")
        for part in (self._drafts, self._manifest):
            part._db.execute(f"PRAGMA cache_size = -{size_kib}")

    def work(
        self, prompt: tuple[int, ...], chain: list[str], cluster: str, new: BlockRow
    ) -> dict[str, Callable[[], object]]:
        return {
            "drafts: find": partial(self._drafts.find, prompt, cluster),
            "drafts: keep": partial(self._drafts.keep, prompt, cluster, prompt[:40]),
            "manifest: get": partial(self._manifest.get, chain[5]),
            "manifest: touch ten": partial(self._manifest.touch, chain),
            "manifest: add": partial(self._manifest.add, new),
        }

    def close(self) -> None:
        self._drafts.close()
        self._manifest.close()


def main() -> None:
    times: dict[str, dict[int, list[float]]] = defaultdict(lambda: defaultdict(list))
    with tempfile.TemporaryDirectory() as folder:
        prompts, chains = filled_drafts(Path(folder)), filled_manifest(Path(folder))
        copies = {size: Copy(Path(folder), size) for size in SIZES_KIB}
        for number in range(WARM_UP + ROUNDS):
            prompt, chain = CHANCE.choice(prompts), CHANCE.choice(chains)
            cluster, new = f"cluster {CHANCE.randrange(400)}", block_after(chain[-1])
            for size in CHANCE.sample(SIZES_KIB, len(SIZES_KIB)):
                for name, work in copies[size].work(prompt, chain, cluster, new).items():
                    begin = time.perf_counter()
                    work()
                    if number >= WARM_UP:
                        times[name][size].append((time.perf_counter() - begin) * 1e6)
        for copy in copies.values():
            copy.close()
    medians = {
        n: {s: round(statistics.median(t)) for s, t in by.items()} for n, by in times.items()
    }
    print(
        json.dumps({"machine": machine(), "rounds": ROUNDS, "median_us_by_kib": medians}, indent=1)
    )


if __name__ == "__main__":
    main()
