"""What a lookup costs in a store a hundred times larger: route, pins, longest prefix.

Two stores side by side, of 1,000 clusters with 10,000 blocks and of 100,000 with 1,000,000, made
through the product's own manifest, plan and Chroma classes from synthetic rows (vectors around real
questions of BANKING77; random token ids). There are no block files: the longest prefix is found in
the manifest alone, and reading KV costs the same in both. The questions are embedded beforehand,
since that is not part of what grows; `benchmarks/routing.py` measures it. For each question both
stores are asked in turn, in changing order: without a domain, with the domain of its nearest
cluster, and with a domain that is another one's.

    python benchmarks/lookup.py [--data ../shared/data] [--questions 300] [--cache DIR]
"""

import argparse
import csv
import json
import tempfile
import time
from collections import defaultdict
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
from machine import machine
from many_questions import vectors_around

from centroidkv.config import EngineConfig
from centroidkv.kv.blocks import BLOCK_TOKENS, block_id, namespace_id
from centroidkv.kv.disk import DiskBlocks
from centroidkv.kv.manifest import BlockRow
from centroidkv.kv.memory import MemoryBlocks
from centroidkv.kv.tiers import TieredBlocks
from centroidkv.routing.chroma_index import EmbeddedChroma
from centroidkv.routing.clustering import nearest_centroid
from centroidkv.routing.embedder import SentenceBertEmbedder
from centroidkv.routing.plan import Plan
from centroidkv.routing.projection import fit_projection
from centroidkv.routing.router import Router
from centroidkv.serving.choosing import PinChooser
from centroidkv.types import Cluster, FloatArray, Passage

SIZES = {"small": 1_000, "large": 100_000}
BLOCKS = 10  # of a cluster
PINS = 8
PASSAGES = 1_000
DOMAINS = 20
PAST = 2_000
WARM_UP = 20
BATCH = 10_000
PLAN, KV = namespace_id("plan", "lookup"), namespace_id("kv", "lookup")
CASES = ("no domain", "its domain", "another domain")


class Known:
    """An embedder that has embedded everything already."""

    fingerprint = "known"

    def __init__(self, texts: Sequence[str], vectors: FloatArray) -> None:
        self._rows = {text: vectors[i : i + 1] for i, text in enumerate(texts)}

    def embed(self, texts: Sequence[str]) -> FloatArray:
        return np.concatenate([self._rows[t] for t in texts])


class Side:
    """One store: plan, Chroma and manifest of so many clusters."""

    def __init__(
        self, folder: Path, plan: Plan, embedder: Known, tokens: "Tokens", *, is_filled: bool
    ) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self.plan, self.tokens = plan, tokens
        disk = DiskBlocks(folder, budget_bytes=1 << 60)
        if not is_filled:
            for rows in tokens.rows(len(plan.clusters)):
                disk.manifest.add(*rows)
        self.blocks = TieredBlocks(MemoryBlocks(budget_bytes=1 << 20), disk)
        self._chroma = EmbeddedChroma(folder / "chroma", quarantine=folder / "quarantine")
        self.router = Router(embedder, self._chroma.open)
        self.router.use(plan)
        self.chooser = PinChooser(EngineConfig())
        self.times: defaultdict[str, defaultdict[str, list[float]]] = defaultdict(
            lambda: defaultdict(list)
        )

    def ask(self, question: str, case: str, domain: str | None) -> None:
        """Look up what a question may reuse; note the seconds of each stage."""
        times = [time.perf_counter()]
        route = self.router.route(question, domain)
        times.append(time.perf_counter())
        assert route.cluster is not None
        found = [*self.plan.pinned(route.cluster)[1:7:2], self.plan.passages["p0"]]
        # A lookup's own time: what the retriever does in between is not counted.
        begin = time.perf_counter()
        plan = self.router.plan_of(route)
        self.chooser.choose(plan, route, found)
        times.append(times[-1] + time.perf_counter() - begin)
        prompt = self.tokens.prompt(route.cluster.id)
        begin = time.perf_counter()
        match = self.blocks.match(KV, prompt)
        times.append(times[-1] + time.perf_counter() - begin)
        assert match.num_tokens == BLOCKS * BLOCK_TOKENS, match.num_tokens
        steps = dict(zip(("route", "choose", "match"), np.diff(times).tolist(), strict=True))
        for stage, seconds in {**steps, "lookup": times[-1] - times[0]}.items():
            self.times[case][stage].append(seconds)

    def close(self) -> None:
        assert self.router.num_index_failures == 0
        self.router.close()
        self.blocks.disk.close()


class Tokens:
    """Random token ids: one block that all clusters share, then nine of a cluster's own."""

    def __init__(self) -> None:
        self._head = tuple(np.random.default_rng(0).integers(0, 49_152, BLOCK_TOKENS).tolist())

    def _own(self, cluster: int) -> tuple[int, ...]:
        chance = np.random.default_rng(1 + cluster)
        return tuple(chance.integers(0, 49_152, (BLOCKS - 1) * BLOCK_TOKENS).tolist())

    def prompt(self, cluster: int) -> tuple[int, ...]:
        """A prompt of that cluster, with thirty tokens of a question."""
        return (*self._head, *self._own(cluster), *range(30))

    def rows(self, num_clusters: int) -> Iterator[list[BlockRow]]:
        """Yield the manifest's rows, some thousand at a time."""
        rows: list[BlockRow] = []
        for cluster in range(num_clusters):
            parent, ids = KV, self.prompt(cluster)
            for block in range(BLOCKS):
                part = ids[block * BLOCK_TOKENS : (block + 1) * BLOCK_TOKENS]
                own = block_id(parent, part)
                if block or not cluster:
                    rows.append(BlockRow(own, parent, KV, part, 1_000_000))
                parent = own
            if len(rows) >= BATCH:
                yield rows
                rows = []
        yield rows


def past_questions(data: Path) -> list[str]:
    with (data / "banking77/train.csv").open(newline="", encoding="utf-8") as file:
        texts = [row["text"] for row in csv.DictReader(file)]
    order = np.random.default_rng(0).permutation(len(texts))
    return [texts[i] for i in order[:PAST]]


def plan_of(real: FloatArray, size: int) -> Plan:
    """Make a plan whose centroids lie around real questions, in twenty domains of neighbours."""
    vectors = vectors_around(real, size)
    projection = fit_projection(real, dim=32, seed=0)
    domains = nearest_centroid(vectors, real[:DOMAINS])
    text = "A passage as long as those of a knowledge base are, some six hundred characters. " * 7
    chance = np.random.default_rng(2)
    lengths = chance.integers(200, len(text), PASSAGES)
    passages = {f"p{i}": Passage(f"p{i}", f"{i}: {text[:n]}") for i, n in enumerate(lengths)}
    clusters = tuple(
        Cluster(
            id=i,
            centroid=vectors[i],
            representative=f"a question of ordinary length about topic {i}",
            members=(f"question {i}",),
            pins=tuple(f"p{p}" for p in np.sort(chance.choice(PASSAGES, PINS, replace=False))),
            radius=0.9,
            num_members=4,
            domain=f"domain {domains[i]}",
        )
        for i in range(size)
    )
    return Plan(PLAN, 1, projection, clusters, passages)


def figures(times: dict[str, list[float]]) -> dict[str, dict[str, float]]:
    found = {}
    for stage, values in times.items():
        ms = 1e3 * np.array(values[WARM_UP:])
        names = ("p50_ms", "p90_ms", "p99_ms")
        shown = np.percentile(ms, [50, 90, 99]).round(3).tolist()
        found[stage] = dict(zip(names, shown, strict=True))
    return found


def measure(folder: Path, options: argparse.Namespace) -> dict[str, object]:
    texts = past_questions(options.data)
    bert = SentenceBertEmbedder.load("bundled:minilm")
    vectors = bert.embed(texts)
    num_asked = options.questions + WARM_UP
    asked = texts[:num_asked]
    noisy = vectors_around(vectors, num_asked, seed=7)
    known = Known(asked, noisy)
    sides, opening = {}, {}
    for name, size in SIZES.items():
        begin = time.perf_counter()
        is_filled = (folder / name / "filled").exists()
        plan = plan_of(vectors, size)
        sides[name] = Side(folder / name, plan, known, Tokens(), is_filled=is_filled)
        (folder / name / "filled").touch()
        opening[name] = round(time.perf_counter() - begin, 1)
        print(name, "ready after", opening[name], "s", flush=True)
    for number, question in enumerate(asked):
        for case in CASES[number % 3 :] + CASES[: number % 3]:
            names = list(sides) if number % 2 else list(sides)[::-1]
            for name in names:
                side = sides[name]
                domain = None
                if case != "no domain":
                    nearest = side.router.route(question).cluster
                    assert nearest is not None
                    own = int(nearest.domain.split()[1])
                    domain = f"domain {own if case == 'its domain' else (own + 7) % DOMAINS}"
                side.ask(question, case, domain)
    report: dict[str, object] = {"seconds_to_fill_and_open": opening}
    for case in CASES:
        found = {name: figures(side.times[case]) for name, side in sides.items()}
        ratio = found["large"]["lookup"]["p50_ms"] / found["small"]["lookup"]["p50_ms"]
        report[case] = {**found, "large / small, p50 of a lookup": round(ratio, 3)}
        for name in sides:
            row = [f"{s} {v['p50_ms']:.2f} / {v['p90_ms']:.2f}" for s, v in found[name].items()]
            print(f"{case:15}{name:6} ms p50 / p90: {', '.join(row)}")
        print(f"{case:15}ratio {ratio:.2f}")
    for side in sides.values():
        side.close()
    return report


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data", type=Path, default=Path("../shared/data"))
    parser.add_argument("--questions", type=int, default=300)
    parser.add_argument("--cache", type=Path, help="folder to keep the filled stores in (2 GB)")
    parser.add_argument("--out", type=Path, default=Path("benchmarks/results/lookup.json"))
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        found = measure(options.cache or Path(folder), options)
    report = {"machine": machine(), "num_questions": options.questions, "sizes": SIZES, **found}
    options.out.write_text(json.dumps(report, indent=1) + "\n")


if __name__ == "__main__":
    main()
