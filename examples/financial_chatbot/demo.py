"""The main job on real input: build, warm, then a new process answers unseen questions.

Four ways in turn for every question: (a) the plain chain the bank had, (b) the chain with
pinned passages and reuse switched off, (c) the same with reuse on, (d) the source paper's own
algorithm, which decodes from the KV of another question: fast, and often wrong. Times are taken
from `chain.stream` to the first and to the last token, so retrieval, routing and loading count.

    python examples/financial_chatbot/demo.py            # 24 questions, 24 tokens each
    python examples/financial_chatbot/demo.py --full     # all 80 questions, 64 tokens each
"""

import argparse
import json
import logging
import os
import resource
import shutil
import statistics
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")

import bank
from langchain_core.callbacks import BaseCallbackHandler
from transformers.utils import logging as transformers_logging

from centroidkv import Engine
from centroidkv.langchain import CentroidKVLLM, CentroidKVRetriever

WAYS = {
    "a": "plain chain, no reuse",
    "b": "pinned passages, reuse off",
    "c": "pinned passages, reuse on",
    "d": "another question's KV (paper)",
}
TIE = 1e-3


@dataclass
class Answer:
    """One answer of one way, as the user of the chain sees it."""

    ttft_ms: float
    total_ms: float
    text: str
    token_ids: list[int]
    margins: list[float]
    usage: dict[str, Any]
    passages: list[str] = field(default_factory=list)


class Witness(BaseCallbackHandler):
    """Notes what the chain's retriever returned and what the model said of its answer."""

    def __init__(self) -> None:
        self.passages: list[str] = []
        self.info: dict[str, Any] = {}

    def on_retriever_end(self, documents: Any, **_: Any) -> None:
        self.passages = [d.metadata["id"] for d in documents]

    def on_llm_end(self, response: Any, **_: Any) -> None:
        self.info = response.generations[0][0].generation_info


def build(store: Path, num_clusters: int, report_path: Path) -> None:
    """Build and warm a store from the past questions, and note how long it took."""
    if (store / "store.json").exists():
        shutil.rmtree(store)
    with Engine.open(store) as engine:
        base = bank.retriever(engine.router.embedder)
        past = bank.past_questions()
        built = engine.build(
            questions=[q["question"] for q in past],
            retriever=base,
            num_clusters=num_clusters,
            max_pins=bank.MAX_PINS,
            max_pin_tokens=bank.MAX_PIN_TOKENS,
            show_progress=True,
        )
        pinned = CentroidKVRetriever(engine=engine, base=base)
        chain = bank.chain(pinned, CentroidKVLLM(engine=engine))
        warmed = engine.warm(chain.invoke, show_progress=True)
        report = {
            "num_past_questions": built.num_questions,
            "num_clusters": built.num_clusters,
            "num_warmed_clusters": warmed.filled,
            "store_bytes": engine.stats().disk_bytes,
            "build_s": round(built.seconds, 2),
            "warm_s": round(warmed.seconds, 2),
            "build_peak_rss_mb": _peak_mb(),
        }
    build_paper(paper_store(store))
    report_path.write_text(json.dumps(report))


def paper_store(store: Path) -> Path:
    return store.with_name(f"{store.name}-paper")


def build_paper(store: Path) -> None:
    """Build the paper's system: eight clusters, each filled by its representative's question."""
    if (store / "store.json").exists():
        shutil.rmtree(store)
    with Engine.open(store, preset="paper") as engine:
        past = [q["question"] for q in bank.past_questions()]
        engine.build(questions=past, retriever=lambda _: [])  # it pins nothing
        chain = bank.chain(
            bank.retriever(engine.router.embedder), CentroidKVLLM(engine=engine, max_tokens=1)
        )
        engine.warm(chain.invoke, show_progress=True)


def play(store: Path, num_questions: int, max_tokens: int) -> dict[str, Any]:
    """Answer unseen questions all four ways; return the report."""
    started = time.perf_counter()
    engine = Engine.open(store)
    embedder = engine.router.embedder
    paper = Engine.open(paper_store(store), model=engine.model, embedder=embedder, preset="paper")
    base = bank.retriever(embedder)
    pinned = CentroidKVRetriever(engine=engine, base=base)
    chains = {
        "a": bank.chain(base, CentroidKVLLM(engine=engine, max_tokens=max_tokens, reuse="off")),
        "b": bank.chain(pinned, CentroidKVLLM(engine=engine, max_tokens=max_tokens, reuse="off")),
        "c": bank.chain(pinned, CentroidKVLLM(engine=engine, max_tokens=max_tokens)),
        "d": bank.chain(base, CentroidKVLLM(engine=paper, max_tokens=max_tokens)),
    }
    open_s = time.perf_counter() - started
    # One answer outside the measurement, to a question of no customer: first use costs more.
    ask(chains["a"], "What is the weather like today?")
    questions = bank.unseen_questions()[:num_questions]
    answers: dict[str, list[Answer]] = {way: [] for way in WAYS}
    for number, question in enumerate(questions):
        for way in in_turn(number):
            answers[way].append(ask(chains[way], question.text))
            engine.flush()
        print(f"\r{number + 1} of {len(questions)} questions", end="", file=sys.stderr, flush=True)
    print(file=sys.stderr)
    paper.close()
    engine.close()
    expected = [q.expected_passage for q in questions]
    return {
        "open_s": round(open_s, 2),
        **summary(answers, expected),
        "paper": paper_summary(answers["d"], answers["a"], expected, base),
    }


def in_turn(number: int) -> Iterator[str]:
    """Yield the ways, starting with another one for each question."""
    ways = list(WAYS)
    start = number % len(ways)
    yield from ways[start:] + ways[:start]


def ask(chain: Any, question: str) -> Answer:
    witness = Witness()
    started = time.perf_counter()
    ttft_ms, text = 0.0, ""
    for piece in chain.stream(question, config={"callbacks": [witness]}):
        if piece and not ttft_ms:
            ttft_ms = (time.perf_counter() - started) * 1e3
        text += piece
    total_ms = (time.perf_counter() - started) * 1e3
    info = witness.info
    return Answer(
        ttft_ms or total_ms,
        total_ms,
        text,
        info["token_ids"],
        info["margins"],
        info["usage"],
        witness.passages,
    )


def summary(answers: dict[str, list[Answer]], expected: list[str]) -> dict[str, Any]:
    reused = answers["c"]
    ties = sum(is_tie(b, c) for b, c in zip(answers["b"], reused, strict=True))
    same = sum(b.token_ids == c.token_ids for b, c in zip(answers["b"], reused, strict=True))
    plain = sum(a.text == c.text for a, c in zip(answers["a"], reused, strict=True))
    num = len(reused)
    prompt_tokens = sum(c.usage["prompt_tokens"] for c in reused)
    outcomes = [c.usage["outcome"] for c in reused]
    times = {
        way: {
            "ttft_ms_p50": quantile([a.ttft_ms for a in rows], 0.5),
            "ttft_ms_p90": quantile([a.ttft_ms for a in rows], 0.9),
            "total_ms_p50": quantile([a.total_ms for a in rows], 0.5),
        }
        for way, rows in answers.items()
    }
    hits = [i for i, outcome in enumerate(outcomes) if outcome == "hit"]
    return {
        "num_questions": num,
        "ways": times,
        "identical_answers": round(same / (num - ties), 4) if num > ties else 1.0,
        "ties": ties,
        "same_as_plain": round(plain / num, 4),
        "reused_token_share": round(
            sum(c.usage["reused_tokens"] for c in reused) / prompt_tokens, 4
        ),
        **{kind: outcomes.count(kind) for kind in ("hit", "partial", "miss")},
        "reasons": {
            r: [c.usage["reason"] for c in reused].count(r)
            for r in sorted({c.usage["reason"] for c in reused})
        },
        "recall_of_expected_passage": {
            name: round(
                sum(e in a.passages for e, a in zip(expected, answers[way], strict=True)) / num, 4
            )
            for name, way in (("plain", "a"), ("pinned", "c"))
        },
        "prompt_tokens_p50": {
            way: quantile([a.usage["prompt_tokens"] for a in rows], 0.5)
            for way, rows in answers.items()
        },
        "speedup": {
            "ttft_b_over_c": ratio(answers["b"], reused, "ttft_ms"),
            "ttft_b_over_c_hits": ratio(
                [answers["b"][i] for i in hits], [reused[i] for i in hits], "ttft_ms"
            ),
            "ttft_a_over_c": ratio(answers["a"], reused, "ttft_ms"),
            "total_a_over_c": ratio(answers["a"], reused, "total_ms"),
        },
        "peak_rss_mb": _peak_mb(),
    }


def paper_summary(
    rows: list[Answer], plain: list[Answer], expected: list[str], base: Any
) -> dict[str, Any]:
    """Tell how often the representative that answered was another question's.

    It counts as wrong when the passage found best for the representative is not the one that
    answers the question: its answer was then made for something else.
    """
    hits = [(a, p, e) for a, p, e in zip(rows, plain, expected, strict=True) if is_stand_in(a)]
    best = [base.invoke(a.usage["representative"])[0].metadata["id"] for a, _, _ in hits]
    wrong = sum(b != e for b, (_, _, e) in zip(best, hits, strict=True))
    return {
        "hit": len(hits),
        "wrong_answer_share": round(wrong / len(hits), 4) if hits else None,
        "same_as_plain": round(sum(a.text == p.text for a, p, _ in hits) / max(1, len(hits)), 4),
    }


def is_stand_in(answer: Answer) -> bool:
    return bool(answer.usage["approximate"])


def is_tie(one: Answer, other: Answer) -> bool:
    """Tell whether two answers part where the best two tokens were as good as equal."""
    if one.token_ids == other.token_ids:
        return False
    pairs = zip(one.token_ids, other.token_ids, strict=False)
    shared = next((i for i, (x, y) in enumerate(pairs) if x != y), None)
    at = min(len(one.token_ids), len(other.token_ids)) if shared is None else shared
    return at < len(one.margins) and one.margins[at] < TIE


def quantile(values: list[float], q: float) -> float:
    ordered = sorted(values)
    if q == 0.5:
        return round(statistics.median(ordered), 1)
    return round(ordered[min(len(ordered) - 1, round(q * (len(ordered) - 1)))], 1)


def ratio(slow: list[Answer], fast: list[Answer], name: str) -> float | None:
    """Return the ratio of the medians."""
    if not fast:
        return None
    middle = [statistics.median(getattr(a, name) for a in rows) for rows in (slow, fast)]
    return round(middle[0] / middle[1], 2)


def show(report: dict[str, Any]) -> None:
    print(
        f"\n{report['num_past_questions']} past questions in {report['num_clusters']} clusters; "
        f"built in {report['build_s']:.0f} s, warmed in {report['warm_s']:.0f} s, "
        f"{report['store_bytes'] / 1e6:,.0f} MB on disk (raw float32 KV)"
    )
    print(f"{report['num_questions']} questions the store never saw, answered by a new process:\n")
    print(f"{'':34}{'TTFT p50':>10}{'TTFT p90':>10}{'total p50':>11}{'prompt':>9}")
    for way, name in WAYS.items():
        times = report["ways"][way]
        print(
            f"({way}) {name:30}{times['ttft_ms_p50']:>7,.0f} ms{times['ttft_ms_p90']:>7,.0f} ms"
            f"{times['total_ms_p50']:>8,.0f} ms{report['prompt_tokens_p50'][way]:>5,.0f} tok"
        )
    speed, recall = report["speedup"], report["recall_of_expected_passage"]
    hits = speed["ttft_b_over_c_hits"]
    print(
        f"\nfirst token, against what the bank had     (a)/(c)  {speed['ttft_a_over_c']:.1f} x"
        f"   whole answer {speed['total_a_over_c']:.1f} x"
    )
    print(
        f"first token, against the same prompts cold (b)/(c)  {speed['ttft_b_over_c']:.1f} x"
        + (f"   hits alone {hits:.1f} x" if hits else "")
    )
    print(
        f"outcomes     {report['hit']} hit, {report['partial']} partial, {report['miss']} miss; "
        f"{report['reused_token_share']:.0%} of the prompt tokens were not computed again"
    )
    print(
        f"answers      {report['identical_answers']:.0%} identical to (b) token for token, "
        f"{report['ties']} ties; {report['same_as_plain']:.0%} the same text as (a)"
    )
    print(
        f"the passage that answers stood in {recall['plain']:.0%} of the plain and "
        f"{recall['pinned']:.0%} of the pinned prompts"
    )
    show_paper(report["paper"])


def show_paper(paper: dict[str, Any]) -> None:
    if paper["hit"]:
        print(
            f"the paper's way (d) 'hit' {paper['hit']} times; in {paper['wrong_answer_share']:.0%} "
            f"the answer was made for a question about something else"
        )


def _peak_mb() -> int:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--full", action="store_true", help="80 questions, 64 tokens each")
    parser.add_argument("--store", type=Path, default=Path("demo-store"))
    parser.add_argument("--report", type=Path, default=Path("demo-report.json"))
    parser.add_argument("--clusters", type=int, default=bank.NUM_CLUSTERS)
    parser.add_argument("--questions", type=int)
    parser.add_argument("--max-tokens", type=int)
    parser.add_argument("--stage", choices=["build", "play"], help=argparse.SUPPRESS)
    options = parser.parse_args()
    logging.basicConfig(level=logging.WARNING, format="%(message)s")
    transformers_logging.disable_progress_bar()
    questions = options.questions or (80 if options.full else 24)
    max_tokens = options.max_tokens or (64 if options.full else 24)
    built = options.report.with_suffix(".build.json")
    if options.stage == "build":
        build(options.store, options.clusters, built)
    elif options.stage == "play":
        report = {**json.loads(built.read_text()), **play(options.store, questions, max_tokens)}
        options.report.write_text(json.dumps(report, indent=2) + "\n")
        built.unlink()
        show(report)
    else:
        for stage in ("build", "play"):
            subprocess.run([sys.executable, *sys.argv, "--stage", stage], check=True)


if __name__ == "__main__":
    main()
