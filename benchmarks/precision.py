"""What coded KV costs an answer, and what it costs a hit from disk.

quality: TAT-QA dev, questions whose answer is a span of text, the retriever's top 4, the bundled
model, greedy. Each prompt but its question is computed once; the question is then answered behind
that KV as it is, and behind the same KV coded and decoded. Answers are kept, so a run can be cut
into pieces; a random order makes what is there a sample. disk: a prompt of 2,000 tokens, all but
its question from disk, raw and coded in turns; once with the files in the system's page cache, and
once after asking the system to drop them. Both run on one thread.

    python benchmarks/precision.py --part quality --levels q5k4v q4 [--minutes 9] [--limit 100]
    python benchmarks/precision.py --part disk --levels q4
"""

import argparse
import json
import os
import time
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import torch
from machine import machine
from quality_answers import KeptAnswers
from quality_prompts import Asking, Composer, Setting, rendered
from quality_scores import bootstrap, token_f1
from quality_sets import SETS

from centroidkv import Engine
from centroidkv.config import Sampling
from centroidkv.kv.blocks import Piece, chain, namespace_id
from centroidkv.kv.codec import CODING, LEVELS, BlockCoder, block_bytes, parse_block
from centroidkv.models.loading import load_model
from centroidkv.models.transformers_model import TransformersModel
from centroidkv.types import KVBlock

PLAIN = Setting("plain", None, {})
NAMESPACE = namespace_id("benchmark")
HIT_TOKENS = 2000
QUESTIONS = ("What do I do?", "Who helps me?", "What does it cost?", "How long does it take?")


class Answers:
    """Answers behind KV of one level, kept in a file of their own."""

    def __init__(self, folder: Path, level: str, model: TransformersModel) -> None:
        coding = "" if level == "raw" else f"_{CODING}"
        self.kept = KeptAnswers(folder / f"precision_{level}{coding}.jsonl")
        self._model = model
        self._coder = BlockCoder(level, model.rotary)

    def answer(self, pieces: Sequence[Piece], prompt: Sequence[int], max_tokens: int) -> None:
        """Answer a prompt of which `pieces` hold the first tokens, and keep the answer."""
        if self.kept.get(prompt, max_tokens) is not None:
            return
        held = sum(len(p.token_ids) for p in pieces)
        sequence = self._model.open_sequence(len(prompt) + max_tokens)
        try:
            sequence.restore(self._through(p) for p in pieces)
            sequence.prefill(prompt[held:])
            tokens = list(sequence.decode(Sampling(max_tokens=max_tokens)))
        finally:
            sequence.close()
        self.kept.put(prompt, max_tokens, "".join(t.text for t in tokens))

    def _through(self, piece: Piece) -> KVBlock:
        ids = ("0" * 64, piece.parent, NAMESPACE)
        raw = block_bytes(piece.block, ids=ids, token_ids=piece.token_ids, coder=self._coder)
        return parse_block(raw, "benchmark").block


def computed(model: TransformersModel, token_ids: Sequence[int]) -> list[Piece]:
    """Compute some tokens and return their KV in blocks."""
    sequence = model.open_sequence(len(token_ids))
    try:
        sequence.prefill(token_ids)
        return [
            Piece(x.parent, tuple(token_ids[x.start : x.stop]), sequence.snapshot(x.start, x.stop))
            for x in chain(NAMESPACE, token_ids)
        ]
    finally:
        sequence.close()


def quality(options: argparse.Namespace, model: TransformersModel) -> dict[str, Any]:
    """Answer as many questions as there is time for, and compare all that are answered."""
    questions = SETS["tatqa"](options.data, seed=0)
    every = Composer(questions, options.cache).compose(PLAIN)
    asked = [a for a in every if a.asked.kind == "text"]
    order = np.random.default_rng(0).permutation(len(asked))[: options.limit]
    ways = {x: Answers(options.cache, x, model) for x in ("raw", *options.levels)}
    until = time.time() + 60 * options.minutes
    most = questions.max_tokens
    for done, asking in enumerate(asked[i] for i in order):
        if time.time() > until:
            break
        if any(x.kept.get(asking.prompt, most) is None for x in ways.values()):
            prompt = model.encode(rendered(asking.system, asking.user))
            border = prompt.tokens_before(prompt.text.rindex(asking.asked.question))
            pieces = computed(model, prompt.token_ids[:border])
            for answers in ways.values():
                answers.answer(pieces, prompt.token_ids, most)
            print(done + 1, "of", len(order), flush=True)
    taken = [asked[i] for i in order]
    return {x: compared(taken, ways["raw"], ways[x], most) for x in options.levels}


def compared(
    asked: Sequence[Asking], raw: Answers, coded: Answers, max_tokens: int
) -> dict[str, Any]:
    """Return the figures of the questions answered both ways."""
    rows = [
        (a, said, other)
        for a in asked
        if (said := raw.kept.get(a.prompt, max_tokens)) is not None
        and (other := coded.kept.get(a.prompt, max_tokens)) is not None
    ]
    if not rows:
        return {"answered": 0}
    f1 = np.array([[token_f1(t, a.asked.gold) for t in (said, other)] for a, said, other in rows])
    by_question = bootstrap(list(f1[:, 1] - f1[:, 0]))
    by_document = bootstrap(list(f1[:, 1] - f1[:, 0]), [a.asked.document for a, *_ in rows])
    return {
        "answered": len(rows),
        "of": len(asked),
        "prompt_tokens": round(float(np.mean([len(a.prompt) for a, *_ in rows])), 1),
        "raw_f1": round(float(f1[:, 0].mean()), 4),
        "coded_f1": round(float(f1[:, 1].mean()), 4),
        "same_text": round(float(np.mean([said == other for _, said, other in rows])), 4),
        "difference": asdict(by_question) | {"verdict": by_question.verdict},
        "difference_by_document": asdict(by_document) | {"verdict": by_document.verdict},
    }


def context(model: TransformersModel, data: Path) -> str:
    """Return a context that makes a prompt of about 2,000 tokens."""
    lines = (data / "ask_cfpb/passages.jsonl").read_text("utf-8").splitlines()
    text = ""
    for line in lines:
        text = f"{text}\n\n{json.loads(line)['answer']}"
        if model.count_tokens(text) >= HIT_TOKENS:
            break
    ids = model.encode(text, chat_template=False)
    return text[: ids.offsets[min(HIT_TOKENS, len(ids) - 1)]]


def disk(options: argparse.Namespace, model: TransformersModel) -> dict[str, Any]:
    """Time hits from disk, raw and coded in turns, with nothing of them in memory."""
    text = context(model, options.data)
    with TemporaryDirectory() as folder:
        levels = ("raw", *options.levels)
        paths = {x: filled(Path(folder) / x, x, model, text) for x in levels}
        times: dict[tuple[str, str], list[tuple[float, float]]] = {}
        # The first round warms libraries up.
        for i in range(options.repeats + 1):
            for pages in ("cached", "dropped"):
                for level, path in paths.items():
                    if pages == "dropped":
                        drop_pages(path)
                    seconds = hit(path, level, model, f"{text}\n\n{QUESTIONS[i % 4]}")
                    times.setdefault((level, pages), []).extend([seconds] if i else [])
        size = {x: sum(f.stat().st_size for f in p.glob("blocks/*/*")) for x, p in paths.items()}
    median = {key: np.median(rows, axis=0).round(4).tolist() for key, rows in times.items()}
    return {
        level: {"bytes": size[level], "raw_bytes": size["raw"]}
        | {
            pages: {
                "raw_ttft_s": median["raw", pages][0],
                "ttft_s": median[level, pages][0],
                "ttft_ratio": round(median[level, pages][0] / median["raw", pages][0], 3),
                "raw_load_s": median["raw", pages][1],
                "load_s": median[level, pages][1],
            }
            for pages in ("cached", "dropped")
        }
        for level in options.levels
    }


def filled(path: Path, level: str, model: TransformersModel, text: str) -> Path:
    """Make a store that holds the KV of a context at a level."""
    with Engine.open(path, model=model, memory_budget_bytes=0) as engine:
        if level != "raw":
            engine.codec_report(["What is a bank?"], num_tokens=2, most_kl=1e9)
    with Engine.open(path, model=model, memory_budget_bytes=0, kv_precision=level) as engine:
        engine.generate(f"{text}\n\nWho?", max_tokens=1)
    return path


def hit(path: Path, level: str, model: TransformersModel, prompt: str) -> tuple[float, float]:
    """Return the seconds to the first token, and those of loading."""
    settings = {"memory_budget_bytes": 0, "kv_precision": level, "read_only": True}
    with Engine.open(path, model=model, **settings) as engine:
        usage = engine.generate(prompt, max_tokens=1).usage
    assert usage.kv_precision == level, usage
    assert usage.tier == "disk", usage
    assert usage.computed_tokens < 64, usage
    return usage.ttft_s, usage.load_s


def drop_pages(path: Path) -> None:
    """Ask the system to forget what it holds of a store's blocks."""
    for file in path.glob("blocks/*/*"):
        handle = os.open(file, os.O_RDONLY)
        os.posix_fadvise(handle, 0, 0, os.POSIX_FADV_DONTNEED)
        os.close(handle)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--part", choices=["quality", "disk"], required=True)
    parser.add_argument("--levels", nargs="+", default=list(LEVELS[1:]), choices=LEVELS[1:])
    parser.add_argument("--data", type=Path, default=Path("../shared/data"))
    parser.add_argument("--minutes", type=float, default=9.0, help="stop asking after as long")
    parser.add_argument("--limit", type=int, help="questions; default: all")
    parser.add_argument("--repeats", type=int, default=10, help="hits of each kind")
    parser.add_argument("--cache", type=Path, default=Path("/tmp/centroidkv-cache"))
    parser.add_argument("--out", type=Path, default=Path("benchmarks/results/precision.json"))
    options = parser.parse_args()
    torch.set_num_threads(1)
    # Arenas that are kept for the next request would hold its KV.
    model = load_model("bundled:smollm2", arena_budget_bytes=0)
    part = {"quality": quality, "disk": disk}[options.part](options, model)
    print(json.dumps(part, indent=1))
    report = json.loads(options.out.read_text("utf-8")) if options.out.exists() else {}
    for level, figures in part.items():
        report.setdefault(options.part, {})[level] = figures | {"machine": machine()}
    options.out.parent.mkdir(parents=True, exist_ok=True)
    options.out.write_text(json.dumps(report, indent=1) + "\n")


if __name__ == "__main__":
    main()
