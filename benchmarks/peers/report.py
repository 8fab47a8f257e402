"""Tables and plots of what was measured, and the part of the page that holds them."""

import json
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import matplotlib as mpl

mpl.use("Agg")
from matplotlib import pyplot as plt

from peers.figures import Reached, reached, summary

Row = dict[str, Any]
BEGIN, END = "<!-- figures of {name}: begin -->", "<!-- figures of {name}: end -->"

__all__ = ["into_page", "report", "tables"]


def report(
    name: str, rows: Sequence[Row], settings: Sequence[str], *, header: Row, out: Path
) -> str:
    """Write the results of one workload as JSON and PNG; return its tables as Markdown."""
    out.mkdir(parents=True, exist_ok=True)
    ways = summary(rows)
    targets = reached(rows, settings) if name == "table" else []
    told = {
        **header,
        "targets": [{**asdict(t), "is_met": t.is_met} for t in targets],
        "ways": ways,
        "rows": list(rows),
    }
    (out / f"{name}.json").write_text(json.dumps(told, indent=1) + "\n", encoding="utf-8")
    _draw(name, ways, out / f"{name}.png")
    return tables(ways, targets, rows)


def tables(ways: Sequence[Row], targets: Sequence[Reached], rows: Sequence[Row]) -> str:
    """Return the tables of one workload: targets, ways, loading and preparation."""
    parts = []
    if targets:
        parts.append(_table(
            ["figure", "setting", "target", "reached", "95 % interval", "n", ""],
            [_target_cells(t) for t in targets],
        ))  # fmt: skip
    parts.append(_table(
        ["way", "n", "first token p50", "p90", "p99", "whole answer p50", "p90", "p99",
         "mean with preparation", "prompt", "reused", "same text"],
        [_way_cells(w) for w in ways],
    ))  # fmt: skip
    opened = {r["peer"]: r for r in rows if "loading_s" in r}
    peak: dict[str, float] = {}
    for row in rows:
        peak[row["peer"]] = max(peak.get(row["peer"], 0.0), row.get("peak_mib") or 0.0)
    parts.append(_table(
        ["peer", "loading", "preparation", "peak memory", "versions"],
        [[name, f"{r['loading_s']:.1f} s", f"{r['prepare_s']:.1f} s", f"{peak[name]:,.0f} MiB",
          ", ".join(f"{k} {v}" for k, v in r.get("versions", {}).items())]
         for name, r in opened.items()],
    ))  # fmt: skip
    return "\n\n".join(parts)


def _target_cells(target: Reached) -> list[str]:
    limit = f"at {'most' if target.is_upper else 'least'} {target.limit:g}"
    setting = "float32" if target.column == "float32" else f"best: {target.setting or '-'}"
    if target.value is None:
        return [target.figure, setting, limit, "-", "-", "0", "not measured"]
    span = f"{target.low:.2f} to {target.high:.2f}" if target.low is not None else "-"
    verdict = "met" if target.is_met else "**not met**"
    value = f"{target.value:.2f}" if target.value < 20 else f"{target.value:.0f}"
    return [target.figure, setting, limit, value, span, str(target.n), verdict]


def _way_cells(way: Row) -> list[str]:
    times = [f"{way[f'{t}_p{p}_s'] * 1e3:,.0f} ms" for t in ("ttft", "total") for p in (50, 90, 99)]
    times.append(f"{way['mean_s'] * 1e3:,.0f} ms")
    counts = [
        "-" if way[k] is None else f"{way[k]:,.0f}" for k in ("prompt_tokens", "reused_tokens")
    ]
    same = "-" if way["same_text"] is None else f"{way['same_text']:.0%}"
    return [way["way"], str(way["n"]), *times, *counts, same]


def _table(head: Sequence[str], lines: Sequence[Sequence[str]]) -> str:
    rows = [head, ["---"] * len(head), *lines]
    return "\n".join("| " + " | ".join(row) + " |" for row in rows)


def _draw(name: str, ways: Sequence[Row], path: Path) -> None:
    """Draw first token and whole answer of each way, p50 with a line up to p90, log scale."""
    shown = sorted(ways, key=lambda w: w["ttft_p50_s"])
    figure, panels = plt.subplots(
        1, 2, figsize=(12, 1.2 + 0.32 * len(shown)), sharey=True, layout="constrained"
    )
    for panel, kind, title in zip(
        panels, ("ttft", "total"), ("first token", "whole answer"), strict=True
    ):
        middle = [w[f"{kind}_p50_s"] * 1e3 for w in shown]
        upper = [w[f"{kind}_p90_s"] * 1e3 - m for w, m in zip(shown, middle, strict=True)]
        colours = ["tab:blue" if w["peer"].startswith("our") else "tab:gray" for w in shown]
        panel.barh(
            [w["way"] for w in shown], middle, xerr=[[0] * len(shown), upper], color=colours
        )  # fmt: skip
        panel.set(xscale="log", xlabel=f"{title}, ms (p50, line to p90)")
        panel.grid(axis="x", alpha=0.3)
    figure.suptitle(name)
    figure.savefig(path, dpi=110)
    plt.close(figure)


def into_page(page: Path, name: str, text: str) -> bool:
    """Put tables between the page's two marks of that name; tell whether it has them."""
    begin, end = BEGIN.format(name=name), END.format(name=name)
    if not page.exists():
        return False
    whole = page.read_text("utf-8")
    if begin not in whole or end not in whole:
        return False
    before, rest = whole.split(begin, 1)
    after = rest.split(end, 1)[1]
    page.write_text(f"{before}{begin}\n\n{text}\n\n{end}{after}", encoding="utf-8")
    return True
