"""Draws what `pinned_coverage.py` measured: coverage over tokens stored, one panel a base.

python benchmarks/coverage_plot.py
"""

import json
from pathlib import Path
from typing import Any

import matplotlib.pyplot as plt

RESULTS = Path("benchmarks/results/pinned_coverage.json")
WAYS = {"by what was found": "o-", "nearest cluster": "s--"}


def main() -> None:
    rows = json.loads(RESULTS.read_text())["rows"]
    bases = sorted({r["base"] for r in rows})
    figure, panels = plt.subplots(1, len(bases), figsize=(5 * len(bases), 4), sharey=True)
    for panel, base in zip(panels, bases, strict=True):
        draw(panel, [r for r in rows if r["base"] == base and r["seed"] == 2])
        panel.set(title=base, xlabel="distinct tokens stored, thousands")
    panels[0].set_ylabel("share of the retrieved top 4 in the pins")
    panels[0].legend(fontsize=8)
    figure.tight_layout()
    figure.savefig(RESULTS.with_suffix(".png"), dpi=120)


def draw(panel: Any, rows: list[dict[str, Any]]) -> None:
    for way, style in WAYS.items():
        own = sorted((r["stored"], r["share"]) for r in rows
                     if r["recipe"] == way and r["clusters"] > 500)  # fmt: skip
        panel.plot([s / 1000 for s, _ in own], [c for _, c in own], style, label=f"plan, {way}")
    simple = sorted((r["stored"], r["share"]) for r in rows
                    if r["recipe"].startswith("k ="))  # fmt: skip
    panel.plot([s / 1000 for s, _ in simple], [c for _, c in simple], "x:", label="simple recipes")


if __name__ == "__main__":
    main()
