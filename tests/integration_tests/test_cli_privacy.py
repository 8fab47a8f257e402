"""`centroidkv export` and `forget` on a real store, as an operator types them."""

import json
from pathlib import Path

import pytest

from centroidkv import Engine
from centroidkv.cli import main

QUESTION = "Is the branch at Quibble Street open on Sunday?"


def test_what_is_held_is_written_down_and_forgotten(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    store, out = tmp_path / "store", tmp_path / "held.json"
    with Engine.open(store) as engine:
        engine.generate(f"{'The bank has many branches. ' * 12}\n\n{QUESTION}", max_tokens=2)
    said = ["--store", str(store), "--question", QUESTION.upper()]
    assert main(["export", *said, "--out", str(out)]) == 0
    held = json.loads(out.read_text("utf-8"))
    assert held["counts"]["blocks"] > 0
    assert "Quibble" in "".join(row["text"] for row in held["places"]["blocks"])
    assert main(["forget", *said]) == 2
    assert "--yes" in capsys.readouterr().err
    assert main(["forget", "--store", str(store), "--yes"]) == 2
    assert main(["forget", *said, "--yes", "--json"]) == 0
    report = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert report["is_proven"]
    assert report["forgotten"]["blocks"] == held["counts"]["blocks"]
    assert main(["export", *said, "--out", str(out)]) == 0
    assert json.loads(out.read_text("utf-8"))["places"] == {}
