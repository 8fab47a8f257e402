"""What a build costs as the questions grow: seconds per stage and the peak of memory.

Everything but the language model: embed, retrieve (Ask-CFPB's 969 passages, by the command line's
knowledge base), fit with the default settings (a tenth of the questions as clusters), write the
plan file, fill Chroma, and open it all again. Each size runs in a process of its own. Up to
100,000 the questions are texts (`many_questions.py`); above, vectors around 10,000 of theirs are
taken as if precomputed. With `--cache`, embeddings are kept in pieces of 10,000 with the seconds
they took, and those seconds are what `embed` reports.

    python benchmarks/scale.py [--data ../shared/data] [--sizes 10000 30000 100000] [--cache DIR]
"""

import argparse
import json
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from machine import machine
from many_questions import questions, vectors_around

from centroidkv.knowledge import KnowledgeBase
from centroidkv.plan_config import PlanConfig
from centroidkv.routing.chroma_index import EmbeddedChroma
from centroidkv.routing.embedder import SentenceBertEmbedder
from centroidkv.routing.history import Seen
from centroidkv.routing.plan import PlanFolder
from centroidkv.routing.router import Router
from centroidkv.types import FloatArray, Passage
from centroidkv.versions.fitting import fit_plan

TEXTS = 100_000
PIECE = 10_000
DEPTH = 16
NAMESPACE = "5" * 64


class Stages:
    """Wall-clock and processor seconds of each stage, and the memory's peak behind it."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = {}
        self.cpu_s: dict[str, float] = {}
        self.peak_mib: dict[str, int] = {}
        self._begin = (time.perf_counter(), time.process_time())

    def start(self) -> None:
        self._begin = (time.perf_counter(), time.process_time())

    def end(self, name: str) -> None:
        self.seconds[name] = round(time.perf_counter() - self._begin[0], 2)
        self.cpu_s[name] = round(time.process_time() - self._begin[1], 2)
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024
        self.peak_mib[name] = peak
        print(f"  {name:10}{self.seconds[name]:9.1f} s {peak:7} MiB", flush=True)
        self.start()


def passages(data: Path) -> list[Passage]:
    lines = (data / "ask_cfpb/passages.jsonl").read_text("utf-8").splitlines()
    rows = [json.loads(line) for line in lines if line.strip()]
    return [Passage.of(f"{r['question']}\n{r['answer']}", {"id": r["id"]}) for r in rows]


class Kept:
    """An embedder whose vectors of one list of texts are kept in a file."""

    def __init__(self, embedder: SentenceBertEmbedder, path: Path | None) -> None:
        self._embedder = embedder
        self._path = path
        self.fingerprint = embedder.fingerprint

    def embed(self, texts: Sequence[str]) -> FloatArray:
        if self._path is None:
            return self._embedder.embed(texts)
        if not self._path.exists():
            self._path.parent.mkdir(parents=True, exist_ok=True)
            np.save(self._path, self._embedder.embed(texts))
        vectors: FloatArray = np.load(self._path)
        return vectors


def embedded_pieces(
    texts: list[str], embedder: SentenceBertEmbedder, cache: Path | None
) -> tuple[FloatArray, float, float]:
    """Return vectors and the wall-clock and processor seconds that they took."""
    found, seconds, cpu_s = [], 0.0, 0.0
    embedder.embed(texts[:64])
    for number, start in enumerate(range(0, len(texts), PIECE)):
        kept = cache / f"questions-{number:02d}.npz" if cache else None
        part = texts[start : start + PIECE]
        if kept and kept.exists():
            with np.load(kept) as piece:
                share = len(part) / len(piece["vectors"])
                found.append(piece["vectors"][: len(part)])
                seconds += float(piece["seconds"]) * share
                cpu_s += float(piece["cpu_s"]) * share
            continue
        begin, cpu = time.perf_counter(), time.process_time()
        found.append(embedder.embed(part))
        took, cpu_took = time.perf_counter() - begin, time.process_time() - cpu
        seconds, cpu_s = seconds + took, cpu_s + cpu_took
        if kept and len(part) == PIECE:
            kept.parent.mkdir(parents=True, exist_ok=True)
            np.savez(kept, vectors=found[-1], seconds=took, cpu_s=cpu_took)
    return np.concatenate(found), seconds, cpu_s


def asked(
    count: int, options: argparse.Namespace, embedder: SentenceBertEmbedder, stages: Stages
) -> tuple[list[str], FloatArray]:
    texts = questions(options.data, TEXTS)[: count if count <= TEXTS else PIECE]
    vectors, seconds, cpu_s = embedded_pieces(texts, embedder, options.cache)
    if count <= TEXTS:
        stages.end("embed")
        stages.seconds["embed"], stages.cpu_s["embed"] = round(seconds, 2), round(cpu_s, 2)
        return texts, vectors
    vectors = vectors_around(vectors, count)
    return [f"question {i}" for i in range(count)], vectors


def build(count: int, options: argparse.Namespace) -> dict[str, Any]:
    """Build and open again; return what each stage took."""
    stages = Stages()
    embedder = SentenceBertEmbedder.load("bundled:minilm")
    kept = options.cache / "passages.npy" if options.cache else None
    base = KnowledgeBase(passages(options.data), Kept(embedder, kept))
    stages.start()
    texts, vectors = asked(count, options, embedder, stages)
    stages.start()
    seen, known = [], {}
    for text, vector, found in zip(texts, vectors, base.search_many(vectors, DEPTH), strict=True):
        known.update((p.id, p) for p in found)
        seen.append(Seen(text, vector, tuple(p.id for p in found)))
    stages.end("retrieve")
    plan = fit_plan(seen, known, PlanConfig(), namespace=NAMESPACE, count_tokens=num_words)
    stages.end("fit")
    with tempfile.TemporaryDirectory() as store:
        folder = PlanFolder(Path(store) / "plans")
        folder.folder.mkdir()
        size = folder.save(plan).stat().st_size
        stages.end("plan file")
        chroma = EmbeddedChroma(Path(store) / "chroma", quarantine=Path(store) / "quarantine")
        router = Router(embedder, chroma.open)
        router.use(plan)
        stages.end("chroma")
        is_same = plan.is_same_as(plan.grown(plan.clusters[0], {}))
        assert not is_same
        router.close()
        stages.end("close")
        reopened, _ = folder.latest(NAMESPACE)
        assert reopened is not None
        router.use(reopened)
        sample = (texts if count <= TEXTS else questions(options.data, TEXTS))[:100]
        first = router.route(sample[0])
        stages.end("open again")
        assert reopened.is_same_as(plan) and first.cluster is not None
        assert router.num_index_failures == 0
        admitted = sum(router.route(q).is_admitted for q in sample)
        chroma_bytes = sum(p.stat().st_size for p in Path(store).glob("chroma/**/*") if p.is_file())
        router.close()
    offline = [s for s in stages.seconds if s not in ("close", "open again")]
    return {
        "num_questions": count,
        "is_precomputed": count > TEXTS,
        "num_clusters": len(plan.clusters),
        "seconds": stages.seconds,
        "cpu_s": stages.cpu_s,
        "total_s": round(sum(stages.seconds[s] for s in offline), 1),
        "total_cpu_s": round(sum(stages.cpu_s[s] for s in offline), 1),
        "peak_mib": stages.peak_mib,
        "plan_mb": round(size / 1e6, 1),
        "chroma_mb": round(chroma_bytes / 1e6, 1),
        "admitted_of_100_questions": admitted,
    }


def num_words(text: str) -> int:
    """Count tokens without a tokenizer: four for three words."""
    return len(text.split()) * 4 // 3


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data", type=Path, default=Path("../shared/data"))
    parser.add_argument("--sizes", type=int, nargs="*", default=[10_000, 30_000, 100_000])
    parser.add_argument("--cache", type=Path, help="folder to keep embeddings in")
    parser.add_argument("--out", type=Path, default=Path("benchmarks/results/scale.json"))
    parser.add_argument("--one", type=int, help="run one size in this process and print it")
    options = parser.parse_args()
    if options.one:
        print(json.dumps(build(options.one, options)))
        return
    report = json.loads(options.out.read_text()) if options.out.exists() else {"sizes": {}}
    report["machine"] = machine()
    for size in options.sizes:
        print(f"{size} questions", flush=True)
        command = [sys.executable, __file__, "--one", str(size), "--data", str(options.data)]
        if options.cache:
            command += ["--cache", str(options.cache)]
        run = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True)
        print(run.stdout, flush=True)
        report["sizes"][str(size)] = json.loads(run.stdout.splitlines()[-1])
        options.out.parent.mkdir(parents=True, exist_ok=True)
        options.out.write_text(json.dumps(report, indent=1) + "\n")


if __name__ == "__main__":
    main()
