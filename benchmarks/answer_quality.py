"""Whether pinned passages change how good the answers are: token F1 against plain prompts.

TAT-QA dev: every span question, each document's questions in two halves, one half asked with the
plan fitted to the other halves. Ask-CFPB: the bureau's question to its own answer. The bundled
model, greedy; the retriever's top 4. Answers are kept, so a run can be cut into pieces:

    python benchmarks/answer_quality.py [--data ../shared/data] [--minutes 9] [--check 20]

A set and setting that is run takes the place of the same one in the results.
"""

import argparse
import json
import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
from machine import machine
from quality_answers import KeptAnswers, Piece, answer, batches
from quality_prompts import Asking, Composer, Setting, rendered
from quality_scores import bootstrap, is_exact, token_f1
from quality_sets import SETS

from centroidkv import Engine

PLAIN = Setting("plain", None, {})
SETTINGS = (
    Setting("pinned", {}, {}),
    Setting("three", {"max_pins": 3}, {}),
    Setting("best", {}, {"repeat_best": True}),
    Setting("three_best", {"max_pins": 3}, {"repeat_best": True}),
    Setting("short", {}, {"carry_cost": 0.3}),
    Setting("nearest", {}, {"pins_by": "nearest"}),
)


@dataclass(frozen=True, slots=True)
class Answered:
    """A question with its answer under one setting."""

    asking: Asking
    text: str

    @property
    def f1(self) -> float:
        return token_f1(self.text, self.asking.asked.gold)


def pieces(plain: Sequence[Asking], other: Sequence[Asking]) -> list[Piece]:
    """Cut questions into batches to be asked both ways, in a random order.

    Wherever a run stops, what is answered both ways is a sample of whole batches.
    """
    first = {a.asked.id: a.prompt for a in plain}
    asked: dict[tuple[int, ...], list[tuple[int, ...]]] = {}
    for asking in other:
        asked.setdefault(asking.prompt, []).append(first[asking.asked.id])
    row = batches(list(asked))
    order = np.random.default_rng(0).permutation(len(row))
    return [(row[i], [p for prompt in row[i] for p in asked[prompt]]) for i in order]


def whole(todo: Sequence[Piece], answers: KeptAnswers, max_tokens: int) -> set[tuple[int, ...]]:
    """Return the prompts of the batches answered in full.

    Others may be known because another setting made the same prompt: no sample, since those are
    the questions that the setting changes least.
    """
    return {
        prompt
        for piece in todo
        if all(answers.get(p, max_tokens) is not None for part in piece for p in part)
        for prompt in piece[0]
    }


def answered(
    answers: KeptAnswers, askings: Sequence[Asking], max_tokens: int
) -> dict[str, Answered]:
    """Return the answered questions by their id."""
    found = [(a, answers.get(a.prompt, max_tokens)) for a in askings]
    return {a.asked.id: Answered(a, text) for a, text in found if text is not None}


def prompts(plain: Sequence[Asking], pinned: Sequence[Asking]) -> dict[str, Any]:
    """Return what can be said of the prompts alone, answered or not."""
    same = np.mean([a.prompt == b.prompt for a, b in zip(plain, pinned, strict=True)])
    figures: dict[str, Any] = {"asked": len(plain), "same_prompt": round(float(same), 4)}
    for name, askings in (("plain", plain), ("pinned", pinned)):
        figures[name] = {
            "recall": round(float(np.mean([a.has_expected for a in askings])), 4),
            "prompt_tokens": round(float(np.mean([len(a.prompt) for a in askings])), 1),
            "reusable_tokens": round(float(np.mean([a.reusable_tokens for a in askings])), 1),
            "outcomes": dict(Counter(a.outcome for a in askings)),
        }
    return figures


def compare(plain: dict[str, Answered], other: dict[str, Answered]) -> Any:
    """Return a setting's figures over the questions answered both ways."""
    ids = [i for i in plain if i in other]
    f1 = {i: (plain[i].f1, other[i].f1) for i in ids}
    report = _figures(plain, other, ids, f1)
    for name, part_of in (
        ("by_outcome", lambda i: other[i].asking.outcome),
        ("by_kind", lambda i: other[i].asking.asked.kind),
    ):
        parts: dict[str, list[str]] = {}
        for i in ids:
            parts.setdefault(part_of(i), []).append(i)
        report[name] = {p: _figures(plain, other, part, f1) for p, part in sorted(parts.items())}
    report["f1"] = {i: [round(v, 4) for v in f1[i]] for i in ids}
    return report


def _figures(
    plain: dict[str, Answered],
    other: dict[str, Answered],
    ids: Sequence[str],
    f1: dict[str, tuple[float, float]],
) -> dict[str, Any]:
    if not ids:
        return {"answered": 0}
    differences = [f1[i][1] - f1[i][0] for i in ids]
    by_question = bootstrap(differences)
    by_document = bootstrap(differences, [plain[i].asking.asked.document for i in ids])
    ways = {"plain": plain, "pinned": other}
    return {
        "answered": len(ids),
        "difference": asdict(by_question) | {"verdict": by_question.verdict},
        "difference_by_document": asdict(by_document) | {"verdict": by_document.verdict},
        "same_text": float(np.mean([plain[i].text == other[i].text for i in ids])),
        **{name: _means([way[i] for i in ids]) for name, way in ways.items()},
    }


def _means(rows: Sequence[Answered]) -> dict[str, float]:
    columns = {
        "f1": [r.f1 for r in rows],
        "exact": [is_exact(r.text, r.asking.asked.gold) for r in rows],
        "recall": [r.asking.has_expected for r in rows],
        "prompt_tokens": [len(r.asking.prompt) for r in rows],
    }
    return {name: round(float(np.mean(values)), 4) for name, values in columns.items()}


def check(rows: Sequence[Answered], max_tokens: int) -> dict[str, int]:
    """Answer some prompts by the product, one after the other, with reuse on."""
    same = 0
    with TemporaryDirectory() as folder, Engine.open(Path(folder) / "store") as engine:
        for row in rows:
            messages = rendered(row.asking.system, row.asking.user)
            same += engine.generate(messages, max_tokens=max_tokens).text == row.text
    return {"asked": len(rows), "same_text": same}


def chosen(askings: Sequence[Asking], kinds: Sequence[str] | None, limit: int | None) -> list[int]:
    """Return the places of the questions to ask: of some kinds, and a random sample of them."""
    places = [i for i, a in enumerate(askings) if kinds is None or a.asked.kind in kinds]
    return sorted(np.random.default_rng(0).permutation(places)[:limit].tolist())


def show(name: str, report: Any) -> None:
    made = report["prompts"]
    plain, pinned = made["plain"], made["pinned"]
    print(
        f"{name:20} {made['asked']} prompts: recall {plain['recall']:.3f} -> "
        f"{pinned['recall']:.3f}, tokens {plain['prompt_tokens']:.0f} -> "
        f"{pinned['prompt_tokens']:.0f}, same {made['same_prompt']:.2f}, {pinned['outcomes']}"
    )
    if not report["answered"]:
        return
    for by in ("difference", "difference_by_document"):
        found = report[by]
        print(
            f"{'':20} {report['answered']} answered: F1 {report['plain']['f1']:.3f} -> "
            f"{report['pinned']['f1']:.3f}, {found['mean']:+.4f} "
            f"[{found['low']:+.4f}, {found['high']:+.4f}] {found['verdict']}, same text "
            f"{report['same_text']:.2f} ({by})"
        )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data", type=Path, default=Path("../shared/data"))
    parser.add_argument("--sets", nargs="+", default=list(SETS), choices=list(SETS))
    names = [s.name for s in SETTINGS]
    parser.add_argument("--settings", nargs="+", default=names, choices=names)
    parser.add_argument("--kinds", nargs="+", help="only questions of these kinds")
    parser.add_argument("--size", type=int, help="documents of a set; default: all")
    parser.add_argument("--limit", type=int, help="questions of a set; default: all")
    parser.add_argument("--answered", action="store_true", help="only what has plain answers")
    parser.add_argument("--minutes", type=float, default=9.0, help="stop asking after as long")
    parser.add_argument("--processes", type=int, default=2, help="of one thread each")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--check", type=int, default=0, help="prompts the product answers too")
    parser.add_argument("--cache", type=Path, default=Path("/tmp/centroidkv-cache"))
    parser.add_argument("--out", type=Path, default=Path("benchmarks/results/answer_quality.json"))
    options = parser.parse_args()
    kept = options.cache / "answer_quality.jsonl"
    until = time.time() + 60 * options.minutes
    report: dict[str, Any] = {"sets": {}}
    if options.out.exists():
        report = json.loads(options.out.read_text("utf-8"))
    report |= {"machine": machine(), "seed": options.seed}
    for name in options.sets:
        questions = SETS[name](options.data, seed=options.seed, size=options.size)
        composer = Composer(questions, options.cache)
        every = composer.compose(PLAIN)
        places = chosen(every, options.kinds, options.limit)
        if options.answered:
            known = answered(KeptAnswers(kept), every, questions.max_tokens)
            places = [i for i in places if every[i].asked.id in known]
        plain = [every[i] for i in places]
        for setting in (s for s in SETTINGS if s.name in options.settings):
            every = composer.compose(setting)
            pinned = [every[i] for i in places]
            todo = pieces(plain, pinned)
            answer(todo, kept, questions.max_tokens, until=until, processes=options.processes)
            answers = KeptAnswers(kept)
            sample = whole(todo, answers, questions.max_tokens)
            before = answered(answers, plain, questions.max_tokens)
            after = answered(
                answers, [a for a in pinned if a.prompt in sample], questions.max_tokens
            )
            row = {"prompts": prompts(plain, pinned), **compare(before, after)}
            if options.check:
                some = [after[i] for i in list(after)[:: max(1, len(after) // options.check)]]
                row["product"] = check(some, questions.max_tokens)
            report["sets"].setdefault(name, {})[setting.name] = row
            show(f"{name}: {setting.name}", row)
    options.out.parent.mkdir(parents=True, exist_ok=True)
    options.out.write_text(json.dumps(report, indent=1) + "\n")


if __name__ == "__main__":
    main()
