"""The command line as a user types it, and what it says to a user's mistakes."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

from centroidkv.cli import main


def run(capsys, *arguments: object) -> tuple[int, str, str]:
    code = main([str(a) for a in arguments])
    out, err = capsys.readouterr()
    return code, out, err


def test_build_ask_stats_check(small_bank: tuple[Path, Path], tmp_path: Path, capsys) -> None:
    questions, passages = small_bank
    store = tmp_path / "store"
    build = ["build", "--questions", questions, "--passages", passages, "--store", store]
    code, out, _ = run(capsys, *build, "--clusters", 3, "--json")
    built = json.loads(out)
    assert code == 0
    assert built["num_questions"] == 60
    assert built["warm"]["filled"] == built["num_clusters"] == 3
    question = "How do I block my card?"
    _, out, _ = run(capsys, "ask", "--store", store, question, "--max-tokens", 6, "--json")
    warm = json.loads(out)
    assert warm["usage"]["outcome"] in ("hit", "partial")
    assert warm["usage"]["reused_tokens"] > 300
    _, out, _ = run(
        capsys, "ask", "--store", store, question, "--max-tokens", 6, "--reuse", "off", "--json"
    )
    assert json.loads(out)["text"] == warm["text"]
    _, out, _ = run(capsys, "stats", "--store", store, "--json")
    stats = json.loads(out)
    assert stats["num_filled_clusters"] == 3 and stats["counters"]["requests"] == 2
    assert stats["health"]["queued_writes"] == 0 and stats["health"]["routes_by"] is None
    assert "\nqueued_writes          0\n" in run(capsys, "stats", "--store", store)[1]
    code, out, _ = run(capsys, "check", "--store", store, "--json")
    assert code == 0 and json.loads(out)["is_clean"]
    victim = next(store.glob("blocks/*/*.safetensors"))
    victim.write_bytes(victim.read_bytes()[:100])
    code, out, _ = run(capsys, "check", "--store", store)
    assert code == 1 and str(victim) in out
    code, out, _ = run(capsys, "check", "--store", store, "--repair")
    assert code == 0 and "repaired" in out
    assert run(capsys, "check", "--store", store)[0] == 0


def test_a_store_is_built_from_a_chat_log_with_domains(
    small_bank: tuple[Path, Path], tmp_path: Path, capsys
) -> None:
    questions, passages = small_bank
    log, settings, store = tmp_path / "log.jsonl", tmp_path / "d.json", tmp_path / "store"
    said = ["hi", "please unblock my card 4539148803436467 for me", "thanks a lot"]
    log.write_text("\n".join(json.dumps({"role": "user", "content": t}) for t in said))
    settings.write_text('{"transfers": {"num_clusters": 2, "kv_budget_bytes": 0}}')
    build = ["build", "--questions", questions, "--chat-log", log, "--passages", passages]
    more = ["--domain-settings", settings, "--clusters", 3, "--store", store, "--json"]
    code, out, _ = run(capsys, *build, *more)
    built = json.loads(out)
    assert code == 0 and built["num_questions"] == 61
    assert built["chat_log"]["num_turns"] == 3 and built["chat_log"]["num_questions"] == 1
    assert built["domains"] == {"cards": 1, "transfers": 2}
    assert built["warm"]["filled"] == 1 and built["warm"]["domain_bytes"] == {"transfers": 0}
    assert sum(built["warm"]["problems"].values()) == 2
    ask = ["ask", "--store", store, "How do I block my card?", "--max-tokens", 2, "--json"]
    domains = [json.loads(run(capsys, *ask, *m)[1])["usage"]["domain"]
               for m in ([], ["--domain", "transfers"])]  # fmt: skip
    assert domains == ["cards", "transfers"]


def bad_inputs() -> list[tuple[list[str], str]]:
    build = ["build", "--store", "new", "--questions"]
    return [
        (["ask", "--store", "nowhere", "x"], "no store at nowhere"),
        (["stats", "--store", "nowhere"], "no store at nowhere"),
        (["check", "--store", "nowhere"], "no store at nowhere"),
        ([*build, "nothing.csv", "--passages", "p.jsonl"], "cannot read nothing.csv"),
        ([*build, "empty.csv", "--passages", "p.jsonl"], "empty.csv is empty"),
        ([*build, "column.csv", "--passages", "p.jsonl"], "no column 'question'"),
        ([*build, "blank.csv", "--passages", "p.jsonl"], "blank.csv holds no questions"),
        ([*build, "latin.csv", "--passages", "p.jsonl"], "latin.csv is not UTF-8"),
        ([*build, "q.csv", "--passages", "broken.jsonl"], "broken.jsonl, line 2: not JSON"),
        ([*build, "q.csv", "--passages", "keys.jsonl"], "keys.jsonl, line 1: needs"),
        (
            [*build, "q.csv", "--passages", "p.jsonl", "--model", "./no-model"],
            "no model folder or file './no-model'",
        ),
        (
            [*build, "q.csv", "--passages", "p.jsonl", "--model", "bundled:gpt"],
            "no bundled model 'bundled:gpt'",
        ),
        (["build", "--store", "new", "--passages", "p.jsonl"], "give --questions, --chat-log or"),
        (
            [
                "build",
                "--store",
                "new",
                "--passages",
                "p.jsonl",
                "--chat-log",
                "column.csv",
                "--chat-column",
                "said",
            ],
            "column.csv has no column 'said' (found: text)",
        ),
        ([*build, "q.csv", "--passages", "p.jsonl", "--domain-settings", "q.csv"], "not JSON"),
        (
            [*build, "q.csv", "--passages", "p.jsonl", "--domain-settings", "d.json"],
            "domain_settings names 'loans', which no question belongs to",
        ),
        (
            ["build", "--store", "taken", "--questions", "q.csv", "--passages", "p.jsonl"],
            "taken exists and is not a centroidkv store",
        ),
    ]


@pytest.mark.parametrize(("arguments", "message"), bad_inputs())
def test_a_users_mistake_gets_one_clear_line(
    arguments: list[str], message: str, tmp_path: Path, monkeypatch, capsys
) -> None:
    files = {
        "q.csv": b"question\nhow?\n",
        "p.jsonl": b'{"id": "1", "text": "so"}\n',
        "empty.csv": b"",
        "column.csv": b"text\nhow?\n",
        "blank.csv": b"question\n\n   \n",
        "latin.csv": "question\nüber?\n".encode("latin-1"),
        "broken.jsonl": b'{"id": "1", "text": "so"}\n{"id":\n',
        "keys.jsonl": b'{"id": "1"}\n',
        "d.json": b'{"loans": {}}',
    }
    for name, content in files.items():
        (tmp_path / name).write_bytes(content)
    (tmp_path / "taken").mkdir()
    (tmp_path / "taken/letter.txt").write_text("dear bank")
    monkeypatch.chdir(tmp_path)
    code, out, err = run(capsys, *arguments)
    assert code == 2
    assert out == ""
    assert message in err
    assert err.count("\n") == 1 and "Traceback" not in err
    assert not (tmp_path / "new").exists() or not list((tmp_path / "new").rglob("*.plan"))


def test_help_has_examples(capsys) -> None:
    for arguments in ([], ["build"], ["ask"], ["stats"], ["check"]):
        with pytest.raises(SystemExit) as stopped:
            main([*arguments, "--help"])
        assert stopped.value.code == 0
        assert "centroidkv" in capsys.readouterr().out


def test_it_runs_as_a_module_and_as_a_command() -> None:
    command = Path(sys.executable).with_name("centroidkv")
    for start in ([sys.executable, "-m", "centroidkv"], [str(command)]):
        done = subprocess.run([*start, "--version"], capture_output=True, text=True, check=False)
        assert done.stdout.strip() == "0.1.0"
