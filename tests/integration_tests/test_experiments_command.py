"""The paper's experiments, small: every table and plot comes out, and says what it must say."""

import csv
import os
import subprocess
import sys
from pathlib import Path

import bank
import pytest
from experiments.sweeps import METHODS

ROOT = Path(bank.__file__).parents[2]


def rows(path: Path) -> list[dict[str, str]]:
    with path.open(newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


@pytest.fixture(scope="module")
def out(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("experiments")
    own = [str(ROOT / "benchmarks"), str(Path(bank.__file__).parent)]
    paths = os.pathsep.join([*own, *filter(None, [os.environ.get("PYTHONPATH")])])
    command = [sys.executable, "-m", "experiments", "--quick", "--data", str(folder / "none")]
    command += ["--work", str(folder / "work"), "--out", str(folder / "out")]
    for part in (["times", "report"], []):  # the second run goes on where the first one was
        done = subprocess.run(
            [*command, *(["--part", *part] if part else [])],
            env={**os.environ, "PYTHONPATH": paths},
            capture_output=True, text=True, check=False,
        )  # fmt: skip
        assert done.returncode == 0, done.stderr[-3000:]
    return folder / "out"


def test_table_1_has_every_way_and_what_it_is_worth(out: Path) -> None:
    table = {(r["way"], r["clustering"]): r for r in rows(out / "table1.csv")}
    ways = {way for way, _ in table}
    assert {c for w, c in table if w == "append"} == set(METHODS)
    assert ways == {"plain", "cag", "cag_found", "exact", "answer", "continue", "append"}
    answer = table["answer", "spectral"]
    assert float(answer["filled"]) == 1.0
    assert float(answer["sample_hit"]) == float(answer["reused_share"]) == 1.0
    # Eight representatives among 80 questions of 80 passages.
    assert float(answer["filled_wrong"]) >= 1 - float(answer["ceiling"]) == pytest.approx(0.9)
    assert float(answer["online"]) >= 1 - 8 / 80
    assert float(table["cag", ""]["sample_hit"]) == 1.0
    assert float(table["cag", ""]["improvement_mean"]) == 0
    assert float(table["append", "spectral"]["reused_share"]) < 0.6
    assert float(table["plain", ""]["same_text_as_plain"]) == 1.0


def test_a_run_that_goes_on_asks_nothing_twice(out: Path) -> None:
    asked = [(r["way"], r["method"], r["number"]) for r in rows(out / "requests.csv")]
    assert len(asked) == len(set(asked)) == 3 + 6 * 2


def test_figures_have_their_ceilings_and_plots(out: Path) -> None:
    for name, by in (("figure3", "k_asked"), ("figure4", "pca_dim"), ("figure5", "num_past")):
        points = rows(out / f"{name}.csv")
        assert {float(p["filled"]) for p in points} == {1.0}
        assert all(float(p["filled_wrong"]) >= 1 - float(p["ceiling"]) - 1e-6 for p in points)
        assert len({p[by] for p in points}) >= (1 if name == "figure5" else 2)
        assert (out / f"{name}-example_bank.png").read_bytes().startswith(b"\x89PNG")


def test_the_baselines_say_what_they_take(out: Path) -> None:
    found = {r["baseline"]: r for r in rows(out / "baselines.csv")}
    per_question, cache = found["kv_per_question"], found["answer_cache"]
    assert int(per_question["entries"]) == int(cache["entries"]) == 200
    assert float(per_question["disk_mib"]) > 1000 * float(cache["disk_mib"])
    assert 0 < float(found["cag_context"]["best_passage_held"]) <= 1
