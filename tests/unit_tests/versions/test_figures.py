"""Figures of requests add up, apart per plan version and model."""

from pathlib import Path

import pytest

from centroidkv.types import Outcome, Usage
from centroidkv.versions.figures import FigureFile, read_figures


def usage(plan: str | None = "p-1", outcome: Outcome = "hit", ttft_s: float = 0.2) -> Usage:
    return Usage(outcome, "pinned_prefix", 100, 80, 5, plan=plan, embed_s=0.1, ttft_s=ttft_s)


@pytest.fixture
def figures(tmp_path: Path):
    file = FigureFile(tmp_path, quarantine=tmp_path / "quarantine")
    yield file
    file.close()


def test_versions_and_models_are_kept_apart(figures: FigureFile, tmp_path: Path) -> None:
    assert read_figures(tmp_path) == []
    for outcome in ("hit", "hit", "partial", "miss"):
        figures.add(usage(outcome=outcome), model="m")
    figures.add(usage("p-2", "miss"), model="m")
    figures.add(usage("p-2", "hit"), model="n")
    figures.add(usage(None), model="n")
    rows = {(f.plan, f.model): f for f in read_figures(tmp_path)}
    assert set(rows) == {("p-1", "m"), ("p-2", "m"), ("p-2", "n"), ("", "n")}
    one = rows["p-1", "m"]
    assert (one.requests, one.hits, one.partials, one.misses) == (4, 2, 1, 1)
    assert (one.prompt_tokens, one.reused_tokens, one.reused_share) == (400, 320, 0.8)
    assert rows["p-2", "m"].hits == 0 and rows["p-2", "n"].hits == 1


def test_time_to_the_first_token_has_a_mean_and_a_median(
    figures: FigureFile, tmp_path: Path
) -> None:
    for seconds in (0.1, 0.2, 0.3, 0.4, 9.9):
        figures.add(usage(ttft_s=seconds), model="m")
    (row,) = read_figures(tmp_path)
    assert row.ttft_mean_s == pytest.approx(0.1 + 10.9 / 5), "the embedding counts"
    assert row.ttft_p50_s == pytest.approx(0.1 + 0.3, rel=0.05)


def test_two_processes_add_to_the_same_figures(figures: FigureFile, tmp_path: Path) -> None:
    other = FigureFile(tmp_path, quarantine=tmp_path / "quarantine")
    for file in (figures, other, figures):
        file.add(usage(), model="m")
    other.close()
    assert [f.requests for f in read_figures(tmp_path)] == [3]


def test_reading_closed_figures_leaves_nothing_beside_them(tmp_path: Path) -> None:
    file = FigureFile(tmp_path, quarantine=tmp_path / "quarantine")
    file.add(usage(), model="m")
    file.close()
    before = sorted(p.name for p in tmp_path.iterdir())
    assert read_figures(tmp_path)[0].requests == 1
    assert sorted(p.name for p in tmp_path.iterdir()) == before
    assert (tmp_path / "figures.sqlite").stat().st_mode & 0o777 == 0o600


def test_a_damaged_file_is_set_aside_and_begun_anew(tmp_path: Path, caplog) -> None:
    (tmp_path / "figures.sqlite").write_bytes(b"garbage" * 500)
    assert read_figures(tmp_path) == []
    assert "cannot be read" in caplog.text
    file = FigureFile(tmp_path, quarantine=tmp_path / "quarantine")
    file.add(usage(), model="m")
    file.close()
    assert (tmp_path / "quarantine/figures.sqlite").exists()
    assert read_figures(tmp_path)[0].requests == 1
