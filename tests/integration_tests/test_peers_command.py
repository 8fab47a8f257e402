"""The race of peers, small: real processes, the bundled model, rows, tables and a plot."""

import json
import os
import subprocess
import sys
from pathlib import Path

import bank
import pytest

ROOT = Path(bank.__file__).parents[2]


@pytest.fixture(scope="module")
def raced(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, list[str]]:
    folder = tmp_path_factory.mktemp("peers")
    own = [str(ROOT / "benchmarks"), str(Path(bank.__file__).parent)]
    paths = os.pathsep.join([*own, *filter(None, [os.environ.get("PYTHONPATH")])])
    command = [sys.executable, "-m", "peers", "--workloads", "chat", "tatqa", "--count", "1"]
    command += ["--peers", "transformers", "ours", "KVBoost", "--data", str(folder / "none")]
    command += ["--work", str(folder / "work"), "--out", str(folder / "out")]
    command += ["--envs", str(folder / "envs"), "--threads", "1"]
    said = []
    for _ in range(2):  # the second run has nothing left to do
        done = subprocess.run(
            command, env={**os.environ, "PYTHONPATH": paths}, capture_output=True, text=True,
            check=False,
        )  # fmt: skip
        assert done.returncode == 0, done.stderr[-3000:]
        said.append(done.stdout)
    return folder / "out", said


def test_a_conversation_is_raced_and_what_is_absent_is_said(raced) -> None:
    out, said = raced
    assert "KVBoost is left out" in said[0]
    assert "left out: there is no" in said[0]
    assert "all rounds are there already" in said[1]
    told = json.loads((out / "chat.json").read_text())
    assert {"processor", "cores", "threads", "commit"} <= told["machine"].keys()
    rows = [r for r in told["rows"] if "way" in r]
    assert len(rows) == 2 * 4
    ways = {w["way"]: w for w in told["ways"]}
    own = ways["ours [float32]"]
    assert own["same_text"] == 1.0
    assert own["reused_tokens"] > 0
    assert own["prompt_tokens"] == ways["transformers"]["prompt_tokens"]
    assert {r["peer"] for r in told["rows"] if r.get("loading_s", 0) > 0} == {
        "transformers", "ours [float32]",
    }  # fmt: skip
    assert (out / "chat.png").read_bytes().startswith(b"\x89PNG")
