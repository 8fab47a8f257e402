"""The two terminal programs of the example bank, on one store."""

import re
import subprocess
import sys
from pathlib import Path

import bank
import pytest

FOLDER = Path(bank.__file__).parent
FIRST = "What should I do when I have lost my credit card?"
AGAIN = "I lost my credit card, what should I do?"
LINE = re.compile(
    r"(?P<outcome>hit|partial|miss) \((?P<reason>\w+)\) \| cluster (?P<cluster>\d+) \| "
    r"first token [\d,]+ ms \| (?P<reused>[\d,]+) of (?P<prompt>[\d,]+) prompt tokens reused, "
    r"(?P<computed>[\d,]+) computed \| [\d.]+ s in all"
)


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("bank") / "store"


def run(program: str, store: Path, *more: str, typed: str = "") -> str:
    options = ["--store", str(store), "--clusters", "2", "--questions", "60", "--max-tokens", "12"]
    done = subprocess.run(
        [sys.executable, str(FOLDER / program), *options, *more],
        input=typed,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    return done.stdout


def lines(out: str) -> list[dict[str, int | str]]:
    found = [match.groupdict() for match in LINE.finditer(out)]
    counts = ("reused", "prompt", "computed")
    return [{**f, **{c: int(f[c].replace(",", "")) for c in counts}} for f in found]


def answers(out: str) -> list[str]:
    return re.findall(r"^(.+)\n  (?:hit|partial|miss) \(", out, re.MULTILINE)


def test_langchain_answers_then_llama_index_reuses_its_kv(store: Path) -> None:
    out = run("langchain_chat.py", store, FIRST, " ", AGAIN)
    assert "from 60 past questions, once" in out
    assert "2 clusters, 2 with KV" in out
    assert "Please type a question." in out
    for line in lines(out):
        assert line["outcome"] in ("hit", "partial")
        assert line["reused"] > line["computed"] > 0
        assert line["reused"] + line["computed"] == line["prompt"]
    other = run("llama_index_chat.py", store, FIRST, AGAIN)
    assert "once" not in other
    # Not warmed for LlamaIndex: its prompts are those of the LangChain chain, token for token.
    assert [line["outcome"] for line in lines(other)] == ["hit", "hit"]
    assert lines(other)[0]["computed"] == 1
    assert [line["prompt"] for line in lines(other)] == [line["prompt"] for line in lines(out)]
    assert len(answers(out)) == 2
    assert answers(other) == answers(out)


def test_the_chat_engine_computes_only_what_is_new_in_a_conversation(store: Path) -> None:
    out = run("llama_index_chat.py", store, "--chat", typed=f"{FIRST}\n{FIRST}\n")
    first, second = lines(out)
    assert first["reason"] in ("pinned_prefix", "extra_passages")
    # The second prompt holds the first turn, whose KV was kept.
    assert second["outcome"] == "hit"
    assert second["prompt"] > second["reused"] >= first["prompt"]
