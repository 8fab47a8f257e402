"""`centroidkv export` and `forget` on a real store, as an operator types them."""

import base64
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


def test_a_store_is_built_encrypted_asked_and_given_another_key(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    for name, byte in (("OLD", 1), ("NEW", 2)):
        monkeypatch.setenv(name, base64.b64encode(bytes([byte] * 32)).decode())
    store, past = tmp_path / "store", tmp_path / "past.csv"
    past.write_text("question\nHow do I block a card?\nWhat does a wire cost?\n")
    bank = tmp_path / "bank.jsonl"
    texts = ["A lost card is blocked in the app at Quibble Street.", "A wire costs twenty dollars."]
    bank.write_text("".join(json.dumps({"id": t[:6], "text": t}) + "\n" for t in texts))
    told = ["--store", str(store), "--json", "--encryption-key"]
    given = ["--questions", str(past), "--passages", str(bank), "--clusters", "2"]
    assert main(["build", *given, *told, "env:OLD"]) == 0
    assert not any(b"Quibble" in f.read_bytes() for f in store.rglob("*") if f.is_file())
    asked = ["ask", "How do I block my card?", "--max-tokens", "2"]
    assert main([*asked, *told, "env:OLD"]) == 0
    usage = json.loads(capsys.readouterr().out.splitlines()[-1])["usage"]
    assert usage["reused_tokens"] > 0, usage
    assert main(["rekey", *told, "env:OLD", "--new-key", "env:NEW"]) == 0
    capsys.readouterr()
    assert main(["stats", *told, "env:OLD"]) == 2
    assert "does not open the store" in capsys.readouterr().err
    assert main(["check", *told, "env:NEW"]) == 0
    assert json.loads(capsys.readouterr().out)["is_clean"]
    assert main(["versions", *told, "env:NEW"]) == 0
    with pytest.raises(SystemExit):
        main(["stats", *told, "AAAA"])
    assert "env:NAME" in capsys.readouterr().err
