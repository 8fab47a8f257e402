"""Two baselines the paper does not have: every past question's answer kept, or its KV.

The answer cache is `CentroidKVAnswerCache` asked with the question alone, in front of the chain.
Its answers here are the passage found best, cut to the length of an answer: thousands of answers
of the model would take hours, and a lookup does not read them. KV per question is Algorithm 1
with one cluster for each past question.
"""

import statistics
import tempfile
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from langchain_core.outputs import Generation

from centroidkv import Engine
from centroidkv.config import EngineConfig
from centroidkv.kv.blocks import chain
from centroidkv.langchain import CentroidKVAnswerCache
from centroidkv.plan_config import PlanConfig
from centroidkv.routing.history import Seen
from centroidkv.versions.fitting import fit_plan
from experiments.corpora import Corpus, KnownVectors, Split, split
from experiments.hits import hits
from experiments.sweeps import NUM_PAST, PAPER, fitted, lookup_ms
from experiments.ways import DEPTH, Chain

LARGER = (9000,)  # the answer cache's lookup is a scan: how it grows
DISTANCES = (2.0, 1.0, 0.8, 0.7, 0.6, 0.5, 0.4)
LOOKUPS = 100
LLM_STRING = "experiments"


def baselines(
    corpus: Corpus, known: KnownVectors, *, num_past: int = NUM_PAST
) -> Iterator[dict[str, Any]]:
    """Yield one row for each baseline, size and distance; the split is that of seed 0."""
    vectors = known.embed(corpus.questions)
    drawn = split(corpus, vectors, seed=0, num_past=min(num_past, corpus.num_past or num_past))
    chained = Chain(corpus, known)
    with tempfile.TemporaryDirectory() as folder:
        with Engine.open(Path(folder) / "store", embedder=known) as engine:
            prompts = [chained.prompt(corpus.questions[i]) for i in drawn.past]
            ids = [engine.model.encode(p).token_ids for p in prompts]
            cost = kv_bytes(engine, prompts[0])
            model = engine.model
            yield cag_context(drawn, chained, engine) | {"corpus": corpus.name}
        yield kv_per_question(corpus, drawn, ids, cost)
        for size in dict.fromkeys((len(drawn.past), *LARGER)):
            if size <= (corpus.num_past or len(corpus.questions) - LOOKUPS):
                larger = split(corpus, vectors, seed=0, num_past=size)
                yield from answer_cache(corpus, larger, known, Path(folder) / "store", model)


def cag_context(drawn: Split, chained: Chain, engine: Engine) -> dict[str, Any]:
    """Count what the one context of CAG holds of what the retriever finds for unseen questions."""
    settings = EngineConfig.of({"preset": "cag"}).plan_settings(engine.model.context_tokens)
    found = {i: chained.find(drawn.texts[i], DEPTH) for i in drawn.past}
    seen = [Seen(drawn.texts[i], drawn.vectors[i], tuple(p.id for p in ps))
            for i, ps in found.items()]  # fmt: skip
    plan = fit_plan(
        seen,
        {p.id: p for ps in found.values() for p in ps},
        PlanConfig.of(settings),
        namespace="0" * 64,
        count_tokens=engine.model.count_tokens,
    )
    (cluster,) = plan.clusters
    unseen = drawn.unseen[:1000]
    held = np.array([
        [p.id in cluster.pins for p in chained.find(drawn.texts[i])] for i in unseen
    ])  # fmt: skip
    return {
        "baseline": "cag_context",
        "entries": len(cluster.pins),
        "distinct_tokens": sum(engine.model.count_tokens(p.text) for p in plan.pinned(cluster)),
        "best_passage_held": float(held[:, 0].mean()),
        "top4_held": float(held.mean()),
    }


def kv_bytes(engine: Engine, prompt: str) -> dict[str, float]:
    """Answer one prompt and return what a token of it takes in memory and on disk, in bytes."""
    before = engine.stats()
    done = engine.generate(prompt, max_tokens=1)
    after = engine.stats()
    tokens = done.usage.stored_tokens
    return {
        "memory": (after.memory_bytes - before.memory_bytes) / tokens,
        "disk": (after.disk_bytes - before.disk_bytes) / tokens,
    }


def kv_per_question(
    corpus: Corpus, drawn: Split, ids: Sequence[Sequence[int]], cost: dict[str, float]
) -> dict[str, Any]:
    """Count hits and bytes where each past question is a cluster of its own."""
    plan, seconds = fitted(drawn, PAPER | {"num_clusters": len(drawn.past)})
    counted = hits(plan, drawn)
    # Equal blocks are stored once: questions with the same passages share a prefix.
    links = {link.id: link.stop - link.start for t in ids for link in chain("0" * 64, tuple(t))}
    distinct = sum(links.values())
    return {
        "corpus": corpus.name,
        "baseline": "kv_per_question",
        "entries": counted.num_clusters,
        "hit_rate": counted.filled,
        "wrong_hit_rate": counted.filled_wrong,
        "lookup_ms_p50": lookup_ms(plan, drawn),
        "build_s": seconds,
        "prompt_tokens_mean": statistics.mean(map(len, ids)),
        "distinct_tokens": distinct,
        "kv_bytes_per_token": cost["disk"],
        "memory_mib": distinct * cost["memory"] / (1 << 20),
        "disk_mib": distinct * cost["disk"] / (1 << 20),
    }


def answer_cache(
    corpus: Corpus, drawn: Split, known: KnownVectors, folder: Path, model: Any
) -> Iterator[dict[str, Any]]:
    """Keep an answer for every past question, look some unseen ones up, count over all."""
    begin = time.perf_counter()
    chained = Chain(corpus, known)
    with Engine.open(folder, model=model, embedder=known) as engine:
        cache = CentroidKVAnswerCache(engine=engine, max_distance=2.0)
        cache.clear()
        for i in drawn.past:
            question = corpus.questions[i]
            cache.update(question, LLM_STRING, [Generation(text=chained.stand_in(question))])
    build_s = time.perf_counter() - begin
    on_disk = sum(p.stat().st_size for p in folder.glob("answers.sqlite*"))
    nearest, far = _nearest(drawn)
    unseen = [corpus.questions[i] for i in drawn.unseen[:LOOKUPS]]
    with Engine.open(folder, model=model, embedder=known.live) as engine:
        cache = CentroidKVAnswerCache(engine=engine, max_distance=2.0)
        taken = []
        for question, expected in zip(unseen, far, strict=False):
            started = time.perf_counter()
            found = cache.lookup(question, LLM_STRING)
            taken.append(time.perf_counter() - started)
            assert found is not None
            note = (found[0].generation_info or {})["centroidkv_cache"]
            assert abs(note["distance"] - expected) < 1e-3, (question, note, expected)
    wrong = drawn.labels[nearest] != drawn.labels[drawn.unseen]
    for distance in DISTANCES:
        served = far <= distance
        yield {
            "corpus": corpus.name,
            "baseline": "answer_cache",
            "entries": len(drawn.past),
            "max_distance": distance,
            "hit_rate": float(served.mean()),
            "wrong_hit_rate": float(wrong[served].mean()) if served.any() else None,
            "lookup_ms_p50": statistics.median(taken) * 1e3,
            "lookup_ms_p90": float(np.quantile(taken, 0.9)) * 1e3,
            "build_s": build_s,
            "disk_mib": on_disk / (1 << 20),
        }


def _nearest(drawn: Split) -> tuple[np.ndarray, np.ndarray]:
    """Return each unseen question's nearest past one and how far it is (Euclidean)."""
    near = drawn.vectors[drawn.unseen] @ drawn.vectors[drawn.past].T
    best = near.argmax(1)
    far = np.linalg.norm(drawn.vectors[drawn.unseen] - drawn.vectors[drawn.past[best]], axis=1)
    return drawn.past[best], far
