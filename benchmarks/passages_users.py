"""Answers per second of eight users over passages in orders never seen, blended and in full.

The two ways take turns, length by length, so that whatever else the machine does meets both.
"""

import json
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np

from centroidkv import Completion, Engine, Passage

USERS, SHOWN, WORDS, BASE = 8, 7, 150, 24
LENGTHS = (8, 32, 64)
SYSTEM = "You answer customers of a bank. Use only the context."
WAYS = ("off", "blend")


def texts_of(data: Path, num: int) -> list[str]:
    """Return the first passages of Ask-CFPB that are long enough, cut to one length."""
    lines = (data / "ask_cfpb/passages.jsonl").read_text("utf-8").splitlines()
    texts = [" ".join(json.loads(line)["answer"].split()[:WORDS]) for line in lines]
    return [t for t in texts if len(t.split()) == WORDS][:num]


def users(
    data: Path, cache: Path, seed: int, limit: int | None, *, quick: bool = False
) -> list[dict[str, Any]]:
    """Return one row per answer length; `limit` bounds the answers per user."""
    del cache
    random = np.random.default_rng(seed)
    num_shown, num_base = (2, 4) if quick else (SHOWN, BASE)
    texts = texts_of(data, num_base)
    rows = []
    with (
        tempfile.TemporaryDirectory() as folder,
        Engine.open(Path(folder) / "store", reuse="blend", drafts=False) as engine,
    ):
        engine.prefill_passages(lambda q: ask(engine, texts[:1], q, 1, "blend"), texts)
        for length in LENGTHS[:1] if quick else LENGTHS:
            row: dict[str, Any] = {"users": USERS, "answer_tokens": length}
            for way in WAYS:
                prompts = [
                    random.permutation(num_base)[:num_shown] for _ in range(USERS * (limit or 1))
                ]
                row |= _round(engine, [[texts[i] for i in p] for p in prompts], length, way)
            row["times"] = round(row["blend_per_s"] / row["off_per_s"], 2)
            rows.append(row)
            print(row, flush=True)
    return rows


def _round(engine: Engine, shown: list[list[str]], length: int, way: str) -> dict[str, float | int]:
    """Let all users ask at once; return answers per second and what was computed."""
    started = time.perf_counter()
    with ThreadPoolExecutor(USERS) as pool:
        asked = enumerate(shown)
        done = list(pool.map(lambda a: ask(engine, a[1], f"Case {a[0]}?", length, way), asked))
    seconds = time.perf_counter() - started
    usages = [d.usage for d in done]
    return {
        f"{way}_per_s": round(len(done) / seconds, 3),
        f"{way}_ttft_p50_s": round(float(np.median([u.ttft_s for u in usages])), 2),
        f"{way}_tokens": round(float(np.mean([u.prompt_tokens for u in usages])), 1),
        f"{way}_blended": round(float(np.mean([u.blended_tokens for u in usages])), 1),
    }


def ask(engine: Engine, texts: list[str], question: str, length: int, way: Any) -> Completion:
    """Answer a question over passages, as a chain would ask it."""
    passages = engine.compose(engine.route(question), [Passage.of(t) for t in texts])
    context = "\n\n".join(p.text for p in passages)
    prompt = f"{SYSTEM}\n\nContext:\n{context}\n\nQuestion: {question}"
    return engine.generate(prompt, max_tokens=length, reuse=way, question=question)
