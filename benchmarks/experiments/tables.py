"""From what the parts left to CSV tables: Table 1, Figures 3 to 5, the baselines.

What was counted and what was timed meet here. Times of requests that hit and of requests that
missed are means of measured ones; a mean over a stream is composed of them by its hit rate.
"""

import csv
import json
import statistics
from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from machine import machine

from experiments.plots import draw
from experiments.sweeps import METHODS
from experiments.times import read_rows
from experiments.ways import FORMS

Row = dict[str, Any]
BASELINE = "cag"
MIB = 1 << 20


@dataclass(frozen=True, slots=True)
class Found:
    """Everything the parts left in a work folder."""

    sweeps: list[Row]
    baselines: list[Row]
    asked: list[Row]
    built: list[Row]

    @classmethod
    def read(cls, work: Path) -> "Found":
        def rows(part: str) -> list[Row]:
            return [r for p in sorted(work.glob(f"{part}-*.jsonl")) for r in read_rows(p)]

        times = rows("times")
        asked = [r for r in times if r["kind"] == "ask"]
        built = [r for r in times if r["kind"] == "build"]
        return cls(rows("sweeps"), rows("baselines"), asked, built)


def report(work: Path, out: Path) -> None:
    """Write every table and plot that the work folder has rows for."""
    found = Found.read(work)
    out.mkdir(parents=True, exist_ok=True)
    tables = {
        "table1": table1(found),
        "figure3": figure(found, "figure3", ("k_asked",)),
        "figure4": figure(found, "figure4", ("k_asked", "pca_dim")),
        "figure5": figure(found, "figure5", ("num_past", "k_asked")),
        "baselines": found.baselines,
        "requests": found.asked,
        "preparation": found.built,
    }
    for name, rows in tables.items():
        if rows:
            _write(out / f"{name}.csv", rows)
    seeds = sorted({r["seed"] for r in found.sweeps})
    (out / "machine.json").write_text(
        json.dumps({"machine": machine(), "seeds": seeds}, indent=1) + "\n"
    )
    draw(tables, out)


def table1(found: Found) -> list[Row]:
    """Return a row for each corpus, form and clustering, and for each other way."""
    rows: list[Row] = []
    plain = {(r["corpus"], r["number"]): r["text"] for r in found.asked if r["way"] == "plain"}
    for row in found.asked:
        own = plain.get((row["corpus"], row["number"]))
        row["same_as_plain"] = None if own is None else row["text"] == own
    for corpus in dict.fromkeys(r["corpus"] for r in found.asked):
        asked = [r for r in found.asked if r["corpus"] == corpus]
        baseline = _times([r for r in asked if r["way"] == BASELINE])
        miss = _times([r for r in asked if r["way"] == "plain"])
        for way in dict.fromkeys(r["way"] for r in asked if r["way"] not in FORMS):
            own = [r for r in asked if r["way"] == way]
            row = {"corpus": corpus, "way": way, "clustering": ""} | _times(own)
            row |= _outcomes(own) | _sizes(found, corpus, way, "")
            rows.append(row | _gain(row, baseline))
        for form in FORMS:
            for method in METHODS:
                counted = _counted(found, corpus, method)
                timed, own = _timed(asked, form, method)
                if own and counted:
                    row = {"corpus": corpus, "way": form, "clustering": method}
                    row |= {"timed_with": timed} | _times(own)
                    row |= counted | _streams(row, counted, miss)
                    row |= _outcomes(own) | _sizes(found, corpus, form, method)
                    rows.append(row | _gain(row, baseline))
    return rows


def _timed(asked: list[Row], form: str, method: str) -> tuple[str, list[Row]]:
    """Return the requests of a clustering, or the paper's, whose hits cost the same.

    A few requests of its own would say more about the length of their answers than about it.
    """
    paper, own = (
        [r for r in asked if (r["way"], r["method"]) == (form, name)]
        for name in ("spectral", method)
    )
    return (method, own) if 2 * len(own) >= len(paper) else ("spectral", paper)


def figure(found: Found, name: str, by: Sequence[str]) -> list[Row]:
    """Return the sweep of a figure, averaged over seeds, with response times by construction."""
    rows: list[Row] = []
    for corpus in dict.fromkeys(r["corpus"] for r in found.sweeps):
        groups = defaultdict(list)
        for r in found.sweeps:
            if (r["corpus"], r["figure"]) == (corpus, name):
                groups[tuple(r[b] for b in by)].append(r)
        for key, group in groups.items():
            row = {"corpus": corpus, **dict(zip(by, key, strict=True)), **_averaged(group)}
            rows.append(row | _by_construction(found, corpus, row))
    return rows


def _averaged(group: list[Row]) -> Row:
    names = ("num_clusters", "fit_s", "filled", "online", "admitted", "filled_wrong",
             "online_wrong", "admitted_wrong", "ceiling", "reachable")  # fmt: skip
    row: Row = {n: statistics.mean(r[n] for r in group) for n in names}
    # The past questions played on empty clusters: each cluster has a member, so each misses once.
    row["online_own"] = statistics.mean(1 - r["num_clusters"] / r["num_past"] for r in group)
    row["wrong_low"] = min(r["filled_wrong"] for r in group)
    row["wrong_high"] = max(r["filled_wrong"] for r in group)
    row["streamed"], row["asked"] = group[0]["streamed"], group[0]["asked"]
    row["lookup_ms"] = next((r["lookup_ms"] for r in group if r["lookup_ms"] is not None), None)
    return row | {"seeds": len(group)}


def _by_construction(found: Found, corpus: str, row: Row) -> Row:
    """Compose what a point costs: a hit costs the same whatever k, d and n are.

    But for the lookup, which `lookup_ms` has, and which is a thousandth of an answer.
    """
    result: Row = {}
    asked = [r for r in found.asked if r["corpus"] == corpus]
    plain = _times([r for r in asked if r["way"] == "plain"])
    for form in ("answer", "continue"):
        own = _times([r for r in asked if (r["way"], r["method"]) == (form, "spectral")])
        if own and plain:
            result[f"{form}_filled_s"] = own["mean_s"]
            streams = _streams(own, row, plain)
            result |= {f"{form}_{name.removeprefix('mean_')}": s for name, s in streams.items()}
    kept = [b for b in found.baselines
            if (b["corpus"], b["baseline"]) == (corpus, "kv_per_question")]  # fmt: skip
    if kept:
        tokens = row["num_clusters"] * kept[0]["prompt_tokens_mean"]
        result["kv_mib"] = tokens * kept[0]["kv_bytes_per_token"] / MIB
    return result


def _times(rows: list[Row]) -> Row:
    if not rows:
        return {}
    whole, first = [r["whole_s"] for r in rows], [r["first_s"] for r in rows]
    cpu = [r["cpu_s"] for r in rows if "cpu_s" in r]
    return {
        "requests": len(rows),
        "mean_s": statistics.mean(whole),
        "median_s": statistics.median(whole),
        "p90_s": float(np.quantile(whole, 0.9)),
        "ttft_mean_s": statistics.mean(first),
        "ttft_median_s": statistics.median(first),
        "ttft_p90_s": float(np.quantile(first, 0.9)),
        "qps": 1 / statistics.mean(whole),
        "cpu_mean_s": statistics.mean(cpu) if cpu else None,
        "reused_share": sum(r["reused_tokens"] for r in rows)
        / sum(r["prompt_tokens"] for r in rows),
        "prompt_tokens_mean": statistics.mean(r["prompt_tokens"] for r in rows),
        "answer_tokens_mean": statistics.mean(r["completion_tokens"] for r in rows),
    }


def _outcomes(rows: list[Row]) -> Row:
    share = {o: sum(r["outcome"] == o for r in rows) / len(rows) for o in ("hit", "partial")}
    same = [r["same_as_plain"] for r in rows if r["same_as_plain"] is not None]
    return {f"sample_{o}": s for o, s in share.items()} | {
        "sample_wrong": sum(r["wrong"] for r in rows) / len(rows),
        "same_text_as_plain": sum(same) / len(same) if same else None,
    }


def _counted(found: Found, corpus: str, method: str) -> Row:
    """Return hit and wrong-hit rates; BANKING77's are the same over every knowledge base."""
    swept = corpus if any(r["corpus"] == corpus for r in found.sweeps) else "ask_cfpb"
    own = [r for r in found.sweeps if (r["corpus"], r["figure"]) == (swept, "table1")]
    group = [r for r in own if r["clustering"] == method]
    return _averaged(group) if group else {}


def _streams(row: Row, counted: Row, miss: Row) -> Row:
    """Compose the mean of a stream by its hit rate; a miss costs what the plain chain does."""
    result: Row = {}
    for kind, name in (("mean_s", "mean_{}_s"), ("cpu_mean_s", "cpu_{}_s")):
        if miss and row[kind] is not None and miss[kind] is not None:
            for way in ("online", "admitted"):
                part = counted[way]
                result[name.format(way)] = part * row[kind] + (1 - part) * miss[kind]
    return result


def _gain(row: Row, baseline: Row) -> Row:
    """Return the paper's improvement rate: the share of CAG's mean response time that is saved."""
    if not baseline:
        return {}
    result = {}
    clock = ("mean_s", "mean_online_s", "mean_admitted_s")
    for name in (*clock, "cpu_mean_s", "cpu_online_s", "cpu_admitted_s"):
        against = baseline["mean_s" if name in clock else "cpu_mean_s"]
        if row.get(name) is not None and against:
            result[f"improvement_{name.removesuffix('_s')}"] = 1 - row[name] / against
    return result


def _sizes(found: Found, corpus: str, way: str, method: str) -> Row:
    """Return what preparing took, and what the KV of all clusters takes, in MiB.

    Algorithm 1 keeps a representative's whole prompt for each cluster, the ways that pin keep the
    pinned passages; a stored answer has no KV, but its question's token ids and text.
    """
    made = [b for b in found.built if (b["corpus"], b["way"], b["method"]) == (corpus, way, method)]
    kept = [b for b in found.baselines
            if (b["corpus"], b["baseline"]) == (corpus, "kv_per_question")]  # fmt: skip
    if not made:
        return {}
    row: Row = {"build_s": made[0]["build_s"], "fill_s": made[0]["fill_s"]}
    if way == "answer":
        row["answers_mib"] = made[0]["answers_bytes"] / MIB
    elif kept:
        tokens = made[0]["pinned_tokens"]
        if way in FORMS:
            tokens = made[0]["num_clusters"] * kept[0]["prompt_tokens_mean"]
        row["kv_tokens"] = tokens
        row["kv_mib"] = tokens * kept[0]["kv_bytes_per_token"] / MIB
    return row


def _write(path: Path, rows: Iterable[Row]) -> None:
    rows = list(rows)
    names = list(dict.fromkeys(n for r in rows for n in r))
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, names, lineterminator="\n")
        writer.writeheader()
        writer.writerows({k: _short(v) for k, v in r.items()} for r in rows)


def _short(value: object) -> object:
    return float(f"{value:.4g}") if isinstance(value, float) else value
