"""KV at a level: found by its own precision alone, used when approved, said in the usage."""

import json
import logging
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from centroidkv import Engine
from centroidkv.config import EngineConfig
from centroidkv.errors import ConfigError
from centroidkv.kv.codec import CODING, LEVELS
from centroidkv.models.transformers_model import TransformersModel
from centroidkv.precision.codec_report import FOLDER, read_report, read_reports, save_report
from centroidkv.precision.levels import named_precision
from small_parts import HashEmbedder

Opening = Callable[..., Engine]
CONTEXT = "The branch in the old town opens at nine and closes at five. " * 5
PROMPTS = [f"{CONTEXT}{question}" for question in ("When does it open?", "And when close?")]
LOSSY, COARSE = LEVELS[1], LEVELS[-1]


@pytest.fixture
def approved(open_engine: Opening) -> Opening:
    """A store whose report approves every level."""
    with open_engine() as engine:
        engine.codec_report(PROMPTS, num_tokens=4, most_kl=100.0)
    return open_engine


def ask(engine: Engine, question: str = "When?") -> tuple[str, int, str]:
    usage = engine.generate(f"{CONTEXT}{question}", max_tokens=4).usage
    engine.flush()
    return usage.reason, usage.reused_tokens, usage.kv_precision


def test_a_setting_is_checked_before_anything_is_loaded() -> None:
    for wrong in ("q9", "q8+", "", f"{LOSSY}+raw", f"{LOSSY}+{LOSSY}", 8):
        with pytest.raises(ConfigError, match="kv_precision"):
            Engine.open("/nowhere", model="/nowhere", embedder=HashEmbedder(), kv_precision=wrong)
    with pytest.raises(ConfigError, match="bitwise"):
        EngineConfig(bitwise=True, kv_precision=LOSSY)
    assert named_precision("+".join(LEVELS)).levels == LEVELS


@pytest.mark.parametrize("first", ["raw", LOSSY])
def test_kv_of_one_precision_is_never_found_by_another(approved: Opening, first: str) -> None:
    other = {"raw": LOSSY, LOSSY: "raw"}[first]
    with approved(kv_precision=first) as engine:
        ask(engine)
        ask(engine.for_tenant("a"))
        assert ask(engine)[2] == first
    with approved(kv_precision=other) as engine:
        for mine in (engine, engine.for_tenant("a")):
            assert ask(mine) == ("other_model", 0, "raw")
            assert ask(mine, "And then?") == ("repeated_prefix", len(CONTEXT) + 1, other)
    with approved(kv_precision=first) as engine:
        for mine in (engine, engine.for_tenant("a")):
            assert ask(mine, "And then?")[1] > len(CONTEXT)


def test_memory_holds_what_the_disk_would_give(approved: Opening) -> None:
    with approved(kv_precision=LOSSY) as engine:
        ask(engine)
        blocks = engine.store.blocks
        ids = [row.id for row in blocks.disk.manifest.rows()]
        assert len(ids) > 3
        for block in ids:
            held, kept = blocks.memory.get(block), blocks.disk.get(block)
            assert held is not None
            assert kept is not None
            np.testing.assert_array_equal(held.keys, kept.keys)
            np.testing.assert_array_equal(held.values, kept.values)
        assert engine.check().is_clean


def test_the_disk_keeps_the_finest_level_and_a_remote_all(
    approved: Opening, tmp_path: Path
) -> None:
    both, remote = f"{LOSSY}+{COARSE}", tmp_path / "remote"
    with approved(kv_precision=both, remote=f"file://{remote}") as engine:
        ask(engine)
        ask(engine, "And then?")
        assert engine._learner.kv_precision == both
        assert {row.level for row in engine.store.blocks.disk.manifest.rows()} == {LOSSY}
    found = {file.suffix for file in remote.rglob("*.*") if file.is_file()}
    assert found == {f".{LOSSY}", f".{COARSE}"}


def test_a_level_without_approval_is_raw_with_one_warning_and_a_counter(
    open_engine: Opening, caplog: pytest.LogCaptureFixture
) -> None:
    def settled(precision: str, name: str) -> list[str]:
        caplog.clear()
        with open_engine(kv_precision=precision) as engine:
            engine.for_tenant("a")
            assert engine._learner.kv_precision == name
        return [r.message for r in caplog.records if "kv_precision" in r.message]

    with open_engine() as engine:
        ask(engine)
    (warning,) = settled(LOSSY, "raw")
    assert "centroidkv codec-report --store" in warning
    with open_engine(kv_precision=LOSSY) as engine:
        assert ask(engine, "And then?")[1] > len(CONTEXT)  # the raw KV is found
        assert engine.stats().counters["unapproved_levels"] == 2
        report = engine.codec_report(PROMPTS[:1], num_tokens=2, most_kl=0.0)
        coarse = [replace(f, is_approved=f.level == LOSSY) for f in report.levels]
        save_report(engine.store.path, replace(report, levels=tuple(coarse)))
    assert settled(LOSSY, LOSSY) == []
    assert len(settled(f"{LOSSY}+{COARSE}", LOSSY)) == 1


def test_the_report_says_what_the_levels_cost(
    open_engine: Opening, model: TransformersModel, caplog: pytest.LogCaptureFixture
) -> None:
    with open_engine() as engine:
        report = engine.codec_report(PROMPTS, num_tokens=8, most_kl=1e-9)
        kept = engine.stats().codec_reports
        path = engine.store.path
    by_level = {f.level: f for f in report.levels}
    raw = by_level.pop("raw")
    assert (raw.mean_kl, raw.key_error, raw.ratio_to_raw, raw.is_approved) == (0, 0, 1, True)
    assert raw.top1_agreement == 1
    assert 0 < report.num_positions <= 16
    for figures in by_level.values():
        assert 0 < figures.key_error < 1
        assert 0 < figures.mean_kl <= figures.p95_kl * 16
        assert not figures.is_approved
    assert (report,) == kept
    assert read_report(path, model.fingerprint, coding=CODING) == report
    assert read_report(path, model.fingerprint, coding="another") is None
    (file,) = (path / FOLDER).glob("*.json")
    altered = json.loads(file.read_text())
    altered["report"]["levels"][1]["is_approved"] = True
    file.write_text(json.dumps(altered))
    with caplog.at_level(logging.WARNING):
        assert read_report(path, model.fingerprint, coding=CODING) is None
        assert read_reports(path) == []
    assert "measure again" in caplog.text
    save_report(path, report)
    (kept,) = (path / "quarantine").iterdir()
    assert json.loads(kept.read_text()) == altered
    save_report(path, report)
    assert list((path / "quarantine").iterdir()) == [kept]


def test_a_report_needs_prompts_that_fit(open_engine: Opening) -> None:
    with open_engine() as engine:
        for prompts in (None, [], ["x" * 5000], PROMPTS[0]):
            with pytest.raises(ConfigError, match="prompt"):
                engine.codec_report(prompts)
        with pytest.raises(ConfigError, match="most_kl"):
            engine.codec_report(PROMPTS, most_kl=-1)
