"""The main job, smaller: past questions, a new process, unseen questions, identical answers."""

import json
import subprocess
import sys
from pathlib import Path

import bank

DEMO = Path(bank.__file__).with_name("demo.py")


def test_the_demo_answers_identically_and_mostly_hits(tmp_path: Path) -> None:
    report_file = tmp_path / "report.json"
    options = ["--store", str(tmp_path / "store"), "--report", str(report_file)]
    options += ["--clusters", "24", "--questions", "8", "--max-tokens", "12"]
    done = subprocess.run(
        [sys.executable, str(DEMO), *options], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr[-3000:]
    report = json.loads(report_file.read_text())
    assert report["num_questions"] == 8
    assert report["num_warmed_clusters"] == report["num_clusters"] > 16
    assert report["hit"] + report["partial"] >= 6, report
    assert report["hit"] >= 1, report
    assert report["hit"] + report["partial"] + report["miss"] == 8
    assert report["identical_answers"] == 1.0, report
    assert report["ties"] <= 1
    assert report["reused_token_share"] >= 0.5, report
    recall = report["recall_of_expected_passage"]
    assert recall["pinned"] >= recall["plain"]
    assert report["paper"]["hit"] == 8
    assert 0 <= report["paper"]["wrong_answer_share"] <= 1
    for way in "abcd":
        times = report["ways"][way]
        assert 0 < times["ttft_ms_p50"] <= times["ttft_ms_p90"]
        assert times["ttft_ms_p50"] < times["total_ms_p50"]
    assert "identical to (b)" in done.stdout
