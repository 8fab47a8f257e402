"""Coded KV on the bundled model: measured, approved, reused; and a store estimated beforehand."""

import json
from pathlib import Path

import pytest

from centroidkv import Engine
from centroidkv.cli import main
from centroidkv.kv.codec import LEVELS
from centroidkv.store import Store

CONTEXT = (
    "A lost card is blocked in the app under Cards, Block, or by phone at any hour. A new card "
    "comes by post within five working days and costs nothing. Payments that are pending when "
    "the card is blocked are still booked. "
) * 3


def run(capsys: pytest.CaptureFixture[str], *arguments: object) -> tuple[int, str, str]:
    code = main([str(a) for a in arguments])
    out, err = capsys.readouterr()
    return code, out, err


def test_levels_are_measured_approved_and_reused(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    store, prompts = tmp_path / "store", tmp_path / "prompts.txt"
    Store.open(store).close()
    report = ["codec-report", "--store", store, "--num-tokens", 16]
    code, _, err = run(capsys, *report)
    assert (code, "give prompts" in err) == (2, True)
    in_lines = json.dumps(f"{CONTEXT}\nWhat is free?")
    prompts.write_text(f"{CONTEXT}How do I block it?\n{in_lines}\n")
    code, out, _ = run(capsys, *report, "--prompts", prompts, "--json")
    measured = {f["level"]: f for f in json.loads(out)["levels"]}
    assert (code, tuple(measured)) == (0, LEVELS)
    q8 = measured["q8"]
    assert q8["is_approved"] and q8["mean_kl"] < 0.001 and q8["ratio_to_bf16"] > 1.8
    assert "approved" in run(capsys, "stats", "--store", store)[1]
    with Engine.open(store, kv_precision="q8") as engine:
        asked = f"{CONTEXT}\n\nQuestion: "
        off = engine.generate(f"{asked}What does a new card cost?", max_tokens=8, reuse="off")
        engine.generate(f"{asked}How is it blocked?", max_tokens=2)
        engine.flush()
    with Engine.open(store, kv_precision="q8") as engine:
        done = engine.generate(f"{asked}What does a new card cost?", max_tokens=8)
    assert (done.usage.tier, done.usage.kv_precision) == ("disk", "q8")
    assert done.usage.reused_tokens > 100
    assert done.text == off.text
    estimate = ["estimate", "--clusters", 10, "--tokens", 1000, "--store", store]
    code, out, _ = run(capsys, *estimate, "--prefill-tokens-per-s", 400, "--json")
    found = json.loads(out)
    assert (code, found["sizes_are"], found["kv_bytes_per_token"]) == (0, "measured", 46_080)
    by_level = {f["level"]: f for f in found["levels"]}
    assert by_level["q8"]["bytes_per_token"] == q8["bytes_per_token"]
    bars = by_level["raw"]["break_even"]
    assert bars["memory"] <= bars["disk"] < bars["remote"]
    assert "loading beats computing" in run(capsys, *estimate, "--prefill-tokens-per-s", 400)[1]
    code, _, err = run(capsys, "estimate", "--clusters", 0, "--tokens", 10)
    assert (code, "clusters" in err) == (2, True)
