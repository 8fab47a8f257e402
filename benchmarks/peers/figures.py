"""From rows to figures: medians and percentiles of each way, and the targets' ratios.

Knows rows and nothing of how they came about. Ratios are taken over the rounds in which both ways
ran; whole answers are compared where both have the same number of tokens.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

Row = dict[str, Any]
Floats = NDArray[np.float64]

__all__ = ["TARGETS", "Ratio", "Reached", "Target", "ratio", "reached", "summary"]

DRAWS = 2000


def field_of(row: Row, name: str) -> float:
    """Return a measured value; `step_s` is the mean time of a token behind the first."""
    if name == "step_s":
        return (float(row["total_s"]) - float(row["ttft_s"])) / max(1, row["tokens"] - 1)
    return float(row[name])


def summary(rows: Sequence[Row]) -> list[Row]:
    """Return one row for each way: counts, p50, p90 and p99 of first token and whole answer.

    `mean_s` is the mean of whole answers with what had to be prepared for each of them. `same_text`
    is the share of answers with the text that transformers gave, where it was asked too.
    """
    plain = [r for r in rows if r.get("way") == "transformers"]
    reference = {(r["round"], r["question"]): r["text"].strip() for r in plain}
    told = []
    for way in dict.fromkeys(r["way"] for r in rows if "way" in r):
        own = [r for r in rows if r.get("way") == way]
        line: Row = {"way": way, "peer": own[0]["peer"], "n": len(own)}
        for name in ("ttft_s", "total_s"):
            values = [r[name] for r in own]
            line |= {f"{name[:-2]}_p{p}_s": float(np.percentile(values, p)) for p in (50, 90, 99)}
        for name in ("prompt_tokens", "reused_tokens", "tokens", "prepare_s"):
            known = [r[name] for r in own if r.get(name) is not None]
            line[name] = float(np.mean(known)) if known else None
        line["mean_s"] = float(np.mean([r["total_s"] + (r.get("prepare_s") or 0.0) for r in own]))
        keys = [(r["round"], r["question"]) for r in own if "text" in r]
        texts = [r["text"].strip() for r in own if "text" in r]
        pairs = zip(keys, texts, strict=True)
        same = [text == reference[key] for key, text in pairs if key in reference]
        line["same_text"] = float(np.mean(same)) if same else None
        told.append(line)
    return told


@dataclass(frozen=True, slots=True)
class Ratio:
    """A ratio over `n` common rounds, and a bootstrap interval of 95 % over these rounds."""

    value: float
    low: float
    high: float
    n: int


def ratio(
    rows: Sequence[Row], over: str, under: str, name: str, *, by: str = "median"
) -> Ratio | None:
    """Divide the median (or mean) of one way by another's; None without common rounds."""
    pairs = _common(rows, over, under, name)
    if not len(pairs):
        return None
    middle: Callable[..., Any] = np.median if by == "median" else np.mean
    drawn = np.random.default_rng(0).integers(len(pairs), size=(DRAWS, len(pairs)))
    values = middle(pairs[drawn, 0], axis=1) / middle(pairs[drawn, 1], axis=1)
    low, high = np.percentile(values, [2.5, 97.5])
    value = middle(pairs[:, 0]) / middle(pairs[:, 1])
    return Ratio(float(value), float(low), float(high), len(pairs))


def _common(rows: Sequence[Row], over: str, under: str, name: str) -> Floats:
    """Return [rounds, 2]: the values of two ways in the rounds that both have."""
    sides = [{r["round"]: r for r in rows if r.get("way") == way} for way in (over, under)]
    rounds = sorted(sides[0].keys() & sides[1].keys())
    chosen = [(sides[0][n], sides[1][n]) for n in rounds]
    if name == "total_s":
        chosen = [(a, b) for a, b in chosen if a["tokens"] == b["tokens"]]
    values = [(field_of(a, name), field_of(b, name)) for a, b in chosen]
    return np.array(values, np.float64).reshape(-1, 2)


@dataclass(frozen=True, slots=True)
class Target:
    """What must be shown: a ratio of two ways, or a rate; `{s}` stands for one of our settings.

    `float32` and `best` are the limits for the first setting and for the best one; None where
    nothing is asked.
    """

    figure: str
    over: str
    under: str
    field: str
    float32: float | None
    best: float | None
    is_upper: bool = False
    by: str = "median"


@dataclass(frozen=True, slots=True)
class Reached:
    """What came out for a target in one column; `value` is None where it was not measured."""

    figure: str
    column: str
    limit: float
    is_upper: bool = False
    value: float | None = None
    low: float | None = None
    high: float | None = None
    n: int = 0
    setting: str = ""

    @property
    def is_met(self) -> bool | None:
        if self.value is None:
            return None
        return self.value <= self.limit if self.is_upper else self.value >= self.limit


OURS, BARE, DISK = "ours [{s}]", "bare [{s}]", "ours, from disk [{s}]"
TARGETS = (
    Target("TTFT / (bare forward of the new tokens + one embedding)", OURS, BARE, "ttft_s", 1.15,
           1.15, is_upper=True),
    Target("TTFT, transformers without reuse / ours", "transformers", OURS, "ttft_s", 18, 30),
    Target("TTFT, CAG / ours", "CAG", OURS, "ttft_s", 1.15, 1.5),
    Target("TTFT, llama.cpp with a warm prefix (Q4_1) / ours", "llama.cpp", OURS, "ttft_s", None,
           1.0),
    Target("TTFT, hit on disk (page cache warm) / hit in RAM", DISK, OURS, "ttft_s", 1.5, 1.5,
           is_upper=True),
    Target("total time, CAG / ours, questions asked for the first time", "CAG", OURS, "total_s",
           1.2, 1.5),
    Target("total time of a repeated question, CAG / ours with drafts", "CAG, again",
           "ours, again [{s}]", "total_s", 4, 6),
    Target("answer cache on a paraphrase, 64 tokens, mean of CAG / ours", "CAG, 64 tokens",
           "answer cache, paraphrase", "total_s", 273, None, by="mean"),
    Target("representative on a paraphrase, 64 tokens, mean of CAG / ours", "CAG, 64 tokens",
           "representative, paraphrase", "total_s", 273, None, by="mean"),
    Target("decode step at 2,000 tokens of context / at 250", "ours, reuse off [{s}]",
           "ours, short [{s}]", "step_s", 1.2, 1.2, is_upper=True),
    Target("miss, store on / off, to the last token", "miss, store on [{s}]",
           "miss, store off [{s}]", "total_s", 1.03, 1.03, is_upper=True),
)  # fmt: skip
RATES = (("cached", "answer cache"), ("representative", "representative"))
ANSWERS_PER_S = 75.0


def reached(rows: Sequence[Row], settings: Sequence[str]) -> list[Reached]:
    """Return what came out for every target: first setting, then the best of all.

    Args:
        rows: What was measured.
        settings: Names of our settings, the one that users get in float32 first.
    """
    found = []
    for target in TARGETS:
        made = {s: _ratio_of(rows, target, s) for s in settings}
        if target.float32 is not None:
            found.append(_told(target, "float32", target.float32, settings[0], made[settings[0]]))
        if target.best is not None:
            known = {s: r for s, r in made.items() if r is not None}
            better = min if target.is_upper else max
            best = better(known, key=lambda s: known[s].value) if known else ""
            found.append(_told(target, "best", target.best, best, known.get(best)))
    rates = next((r["answers_per_s"] for r in rows if "answers_per_s" in r), {})
    for name, title in RATES:
        figure = f"answers per second, {title}, one core"
        value = rates.get(name)
        found.append(Reached(figure, "float32", ANSWERS_PER_S, value=value, n=int(bool(value))))
    return found


def _ratio_of(rows: Sequence[Row], target: Target, setting: str) -> Ratio | None:
    over, under = (way.format(s=setting) for way in (target.over, target.under))
    return ratio(rows, over, under, target.field, by=target.by)


def _told(target: Target, column: str, limit: float, setting: str, found: Ratio | None) -> Reached:
    if found is None:
        return Reached(target.figure, column, limit, is_upper=target.is_upper)
    shown = (found.value, found.low, found.high, found.n)
    return Reached(target.figure, column, limit, target.is_upper, *shown, setting)
