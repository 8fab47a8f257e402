"""Plan versions from the command line: refit, try, promote, go back, take over changed passages."""

import json
from pathlib import Path

import pytest

from centroidkv.cli import main
from small_parts import make_llama, make_tokenizer


@pytest.fixture(scope="module")
def tiny(tmp_path_factory) -> list[object]:
    """A model folder as a user has one; tiny, since the commands load it five times."""
    folder = tmp_path_factory.mktemp("tiny")
    make_llama(positions=16384).save_pretrained(folder)
    make_tokenizer().save_pretrained(folder)
    return ["--model", folder]


def run(capsys, *arguments: object) -> dict:
    assert main([str(a) for a in [*arguments, "--json"]]) == 0
    return json.loads(capsys.readouterr().out)


def states(capsys, store: Path) -> dict[int, str]:
    rows = run(capsys, "versions", "--store", store)["versions"]
    return {row["version"]: row["state"] for row in rows}


def test_a_store_is_refitted_tried_promoted_rolled_back_and_refreshed(
    small_bank: tuple[Path, Path], tiny: list[object], tmp_path: Path, capsys
) -> None:
    questions, passages = small_bank
    store = ["--store", tmp_path / "store"]
    model = [*store, *tiny]
    run(capsys, "build", "--questions", questions, "--passages", passages, *model, "--clusters", 3)
    asked = "How do I block my card?"
    first = run(capsys, "ask", asked, "--max-tokens", 2, *model)["usage"]
    assert first["plan"].endswith("-000001")
    report = run(capsys, "refit", "--share", 0.5, "--clusters", 4, *model)
    assert (report["version"], report["is_in_force"], report["num_new_questions"]) == (2, False, 1)
    assert report["warm"]["filled"] == 4 and report["warm"]["problems"] == {}
    assert states(capsys, store[1]) == {1: "in force", 2: "trial"}
    assert run(capsys, "promote", *store)["in_force"] == 2
    second = run(capsys, "ask", asked, "--max-tokens", 2, *model)["usage"]
    assert second["plan"].endswith("-000002") and second["reused_tokens"] > 200
    assert run(capsys, "rollback", *store)["in_force"] == 1
    assert run(capsys, "trial", 2, "--share", 0.2, *store)["share"] == 0.2
    assert run(capsys, "rollback", *store)["trial"] is None
    rows = run(capsys, "versions", *store)["versions"]
    assert [f["requests"] for row in rows for f in row["figures"]] == [1, 1]
    assert len(run(capsys, "stats", *store)["figures"]) == 2

    lines = [json.loads(line) for line in passages.read_text("utf-8").splitlines()]
    plan = run(capsys, "stats", *store)
    lines[0]["text"] += " As of this month the fee is waived."
    changed = tmp_path / "changed.jsonl"
    changed.write_text("".join(json.dumps(row) + "\n" for row in lines), "utf-8")
    report = run(capsys, "refresh", "--passages", changed, *model)
    assert report["dropped_passages"] == 0 and report["replaced_passages"] <= 1
    assert len(report["changed_clusters"]) + report["kept_clusters"] == plan["num_clusters"] == 3
    assert run(capsys, "stats", *store)["num_filled_clusters"] == 3
    assert run(capsys, "check", *store)["is_clean"]
    assert "waived" in (tmp_path / "store" / "passages.jsonl").read_text("utf-8")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["refit", "--store", "nowhere"], "no store at nowhere"),
        (["versions", "--store", "nowhere"], "no store at nowhere"),
        (["use", "3", "--store", "empty"], "holds no readable plan"),
        (["promote", "--store", "empty"], "holds no readable plan"),
        (["refresh", "--passages", "none.jsonl", "--store", "nowhere"], "cannot read none.jsonl"),
    ],
)
def test_a_users_mistake_gets_one_clear_line(
    arguments: list[str], message: str, tmp_path: Path, monkeypatch, capsys
) -> None:
    from centroidkv.store import Store

    Store.open(tmp_path / "empty").close()
    monkeypatch.chdir(tmp_path)
    assert main(arguments) == 2
    out, err = capsys.readouterr()
    assert out == "" and message in err and err.count("\n") == 1


def test_help_has_an_example_of_every_command(capsys) -> None:
    for name in ("refit", "refresh", "versions", "use", "trial", "promote", "rollback"):
        with pytest.raises(SystemExit) as stopped:
            main([name, "--help"])
        assert stopped.value.code == 0
        assert f"centroidkv {name}" in capsys.readouterr().out
