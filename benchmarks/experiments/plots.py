"""The plots, from the tables alone."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import matplotlib as mpl

mpl.use("Agg")
from matplotlib import pyplot as plt
from matplotlib.axes import Axes

Row = dict[str, Any]
RATES = {
    "filled": "hit, every cluster filled",
    "online": "hit, filled online by unseen questions",
    "online_own": "hit, filled online by the n questions",
    "admitted": "hit, within the radius",
}
TITLES = {
    "ask_cfpb": "BANKING77, Ask-CFPB",
    "tau2": "BANKING77, tau2",
    "question_alone": "BANKING77, the question alone",
    "example_bank": "example bank",
}
# What the paper's text gives of each figure: x and hit rate; the curves themselves are not there.
PAPER = {"figure3": (8, 0.9953), "figure5": (3000, 0.9973)}
AXES = {
    "figure3": ("k_asked", "clusters k (d = 32)", True),
    "figure4": ("pca_dim", "PCA dimensions d", True),
    "figure5": ("num_past", "past questions n", False),
}


def draw(tables: dict[str, list[Row]], out: Path) -> None:
    """Draw each figure that there are rows for, one file a corpus."""
    for name, (x, label, is_log) in AXES.items():
        for corpus in dict.fromkeys(r["corpus"] for r in tables[name]):
            rows = [r for r in tables[name] if r["corpus"] == corpus]
            figure, axes = plt.subplots(1, 2, figsize=(11, 4.2), layout="constrained")
            paper = PAPER.get(name)
            _rates(axes[0], [r for r in rows if r["k_asked"] == 8 or name == "figure3"], x)
            if paper is not None:
                axes[0].plot(*paper, "k*", markersize=11, label="the paper's text")
            _right(axes[1], rows, x, by_k=name != "figure3")
            for ax in axes:
                ax.set(xlabel=label, ylim=(-0.02, 1.04), xscale="log" if is_log else "linear")
                ax.grid(alpha=0.3)
                ax.legend(fontsize=8)
            if name == "figure5":  # hit rates that differ by tenths of a percent
                axes[0].set_ylim(0.9, 1.005)
                axes[0].lines[len(RATES)].remove()
                axes[0].legend(fontsize=8)
            figure.suptitle(f"Figure {name[-1]}: {TITLES[corpus]}")
            figure.savefig(out / f"{name}-{corpus}.png", dpi=110)
            plt.close(figure)
    for corpus in dict.fromkeys(r["corpus"] for r in tables["table1"]):
        _table1([r for r in tables["table1"] if r["corpus"] == corpus], out, corpus)


def _rates(ax: Axes, rows: Sequence[Row], x: str) -> None:
    rows = sorted(rows, key=lambda r: r[x])
    at = [r[x] for r in rows]
    for name, label in RATES.items():
        ax.plot(at, [r[name] for r in rows], "o-", label=label, markersize=3)
    ax.plot(at, [1 - r["filled_wrong"] for r in rows], "s-", label="hit and right", markersize=3)
    ax.set_ylabel("share of unseen questions")


def _right(ax: Axes, rows: Sequence[Row], x: str, *, by_k: bool) -> None:
    """Draw how many hits were right, and how many could have been."""
    groups: dict[object, list[Row]] = {}
    for row in rows:
        kind = "k = 8" if row["k_asked"] == 8 else "k = a tenth of the questions"
        groups.setdefault(kind if by_k else "", []).append(row)
    for kind, group in groups.items():
        group.sort(key=lambda r: r[x])
        at = [r[x] for r in group]
        tail = f", {kind}" if kind else ""
        (line,) = ax.plot(at, [1 - r["filled_wrong"] for r in group], "o-", label=f"right{tail}")
        low, high = ([1 - r[n] for r in group] for n in ("wrong_high", "wrong_low"))
        ax.fill_between(at, low, high, alpha=0.2, color=line.get_color())
        ax.plot(at, [r["ceiling"] for r in group], "--", color=line.get_color(),
                label=f"ceiling of so many representatives{tail}")  # fmt: skip
    ax.set_ylabel("share of hits, every cluster filled")


def _table1(rows: Sequence[Row], out: Path, corpus: str) -> None:
    """Draw mean response times, and what they are worth."""
    figure, axes = plt.subplots(1, 2, figsize=(12, 5.5), layout="constrained")
    names = [f"{r['way']} {r['clustering']}".strip() for r in rows]
    axes[0].barh(names, [r["cpu_mean_s"] or r["mean_s"] for r in rows], color="tab:grey")
    axes[0].set(xlabel="processor time of a hit, mean, s (log)", xscale="log")
    right = [1 - r.get("filled_wrong", 0.0) for r in rows]
    axes[1].barh(names, right, color="tab:green", label="KV of the question, or of its intent")
    axes[1].barh(names, [1 - x for x in right], left=right, color="tab:red",
                 label="KV or answer of another intent")  # fmt: skip
    axes[1].set(xlabel="share of hits, every cluster filled", yticks=[])
    axes[1].legend(fontsize=8, loc="lower left")
    for ax in axes:
        ax.invert_yaxis()
    figure.suptitle(f"Table 1: {TITLES[corpus]}")
    figure.savefig(out / f"table1-{corpus}.png", dpi=110)
    plt.close(figure)
