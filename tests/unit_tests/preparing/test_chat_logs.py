"""Chat logs are read as systems write them, and what cannot be read is named."""

import json
from pathlib import Path

import pytest

from centroidkv.errors import ConfigError
from centroidkv.preparing.chat_logs import read_chat_log


def written(folder: Path, name: str, text: str | bytes) -> Path:
    path = folder / name
    path.write_bytes(text.encode() if isinstance(text, str) else text)
    return path


def test_tab_separated_turns_keep_their_quotation_marks(tmp_path: Path) -> None:
    text = 'conversation\tutterance\tintent\n1\tsay "hi\tx\n1\t\tx\n2\tit is "lost"\tx\n'
    assert read_chat_log(written(tmp_path, "a.tsv", text)) == ['say "hi', 'it is "lost"']


def test_of_a_table_with_roles_only_the_customer_speaks(tmp_path: Path) -> None:
    text = 'speaker,text\nagent,How can I help?\nCustomer,"I lost my card, help"\nbot,Sure\n'
    assert read_chat_log(written(tmp_path, "a.csv", text)) == ["I lost my card, help"]


def test_a_column_can_be_named(tmp_path: Path) -> None:
    path = written(tmp_path, "a.csv", "text,said\nno,yes\n")
    assert read_chat_log(path, column="said") == ["yes"]
    assert read_chat_log(path) == ["no"]


def test_json_lines_hold_messages_lists_or_conversations(tmp_path: Path) -> None:
    system = {"role": "system", "content": "Be kind."}
    ask = {"role": "user", "content": "Where is my card?"}
    parts = {"role": "user", "content": [{"type": "text", "text": "And"}, {"type": "image"}]}
    calls = {"role": "assistant", "content": None}
    lines = [ask, [system, ask, calls], {"messages": [ask, parts], "id": 3}]
    path = written(tmp_path, "a.jsonl", "\n".join(map(json.dumps, lines)) + "\n\n")
    found = read_chat_log(path)
    assert [turn.strip() for turn in found] == ["Where is my card?"] * 3 + ["And"]


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        ("a.tsv", "id\twhat\n1\tx\n", r"no column 'utterance or text.*found: id, what\)"),
        ("a.csv", "", r"\(found: nothing\)"),
        ("a.csv", "text\n\n  \n", "holds no customer's turns"),
        ("a.csv", "role,text\nagent,hello\n", "holds no customer's turns"),
        ("a.jsonl", '{"role": "user"}\n', "line 1: a message needs 'content'"),
        ("a.jsonl", '{"role": "user", "content": "x"}\n{oops\n', "line 2: not JSON"),
        ("a.jsonl", '"text"\n', "line 1: needs a message or a list"),
        ("a.jsonl", "[3]\n", "line 1: a message needs"),
        ("a.jsonl", '{"content": 3}\n', "line 1: the text must be a string, not 3"),
        ("a.csv", b"text\n\xff\n", "not UTF-8"),
        ("a.xlsx", "text\n", r"must be \.tsv, \.csv or \.jsonl"),
    ],
)
def test_what_is_wrong_with_a_log_is_named(tmp_path: Path, name, text, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        read_chat_log(written(tmp_path, name, text))


def test_a_log_that_is_not_there_is_named(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"cannot read .*none\.tsv"):
        read_chat_log(tmp_path / "none.tsv")
