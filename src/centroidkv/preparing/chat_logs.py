"""Reading chat logs: the customer's turns of whole conversations, in their order.

Takes TSV, CSV and JSON lines as systems write them. Knows no meaning: what of it asks for
something is decided in `sifting.py`.
"""

import csv
import io
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from centroidkv.bounds import one_line
from centroidkv.errors import ConfigError
from centroidkv.files import json_lines, read_text

TEXT_COLUMNS = ("utterance", "text", "content", "message", "question")
ROLE_COLUMNS = ("role", "speaker", "author", "sender")
CUSTOMERS = frozenset({"user", "customer", "human", "client", "visitor"})

__all__ = ["read_chat_log"]


def read_chat_log(path: str | Path, *, column: str | None = None) -> list[str]:
    """Read the customer's turns of a chat log.

    `.tsv` and `.csv` need a header; `.jsonl` has a message a line (`{"role": "user", "content":
    "..."}`), a conversation a line (`{"messages": [...]}`), or a list of messages a line. Where a
    role is told, only the customer's turns are taken.

    Args:
        path: The file, UTF-8.
        column: The column or key that holds the text; by default the first there is of utterance,
            text, content, message, question.

    Raises:
        ConfigError: Not there, not UTF-8, of another kind, no such column, or nothing in it.
    """
    file = Path(path)
    text = read_text(file)
    if file.suffix.lower() == ".jsonl":
        turns = _of_json(text, file, column)
    elif file.suffix.lower() in (".tsv", ".csv"):
        turns = _of_table(text, file, column)
    else:
        raise ConfigError(
            f"{file}: a chat log must be .tsv, .csv or .jsonl; rename it, or give the turns "
            "themselves as a list of texts"
        )
    found = [turn for turn in turns if turn.strip()]
    if not found:
        raise ConfigError(f"{file} holds no customer's turns")
    return found


def _of_table(text: str, path: Path, column: str | None) -> Iterator[str]:
    # In tab-separated files a quotation mark is one that somebody typed.
    is_tsv = path.suffix.lower() == ".tsv"
    rows = csv.DictReader(
        io.StringIO(text, newline=""),
        delimiter="\t" if is_tsv else ",",
        quoting=csv.QUOTE_NONE if is_tsv else csv.QUOTE_MINIMAL,
    )
    try:
        names = rows.fieldnames or []
        wanted = _wanted(names, column)
        if wanted is None:
            raise ConfigError(
                f"{path} has no column {column or ' or '.join(TEXT_COLUMNS)!r} (found: "
                f"{one_line(', '.join(names)) or 'nothing'}); name it with column="
            )
        for row in rows:
            if _is_customer(row):
                yield row[wanted] or ""
    except csv.Error as error:
        raise ConfigError(f"{path}, line {rows.reader.line_num}: {error}") from error


def _of_json(text: str, path: Path, column: str | None) -> Iterator[str]:
    for number, row in json_lines(text, path):
        messages = row.get("messages", [row]) if isinstance(row, dict) else row
        if not isinstance(messages, list):
            raise ConfigError(f"{path}, line {number}: needs a message or a list of messages")
        for message in messages:
            wanted = _wanted(list(message), column) if isinstance(message, dict) else None
            if wanted is None:
                raise ConfigError(
                    f"{path}, line {number}: a message needs {column or 'content'!r}, found "
                    f"{message!r:.80}; name the key with column="
                )
            if _is_customer(message):
                yield _content(message[wanted], path, number)


def _content(content: Any, path: Path, number: int) -> str:
    """Return a message's text; of a list of parts, as newer APIs log them, the texts in it."""
    if isinstance(content, list):
        parts = [part.get("text", "") for part in content if isinstance(part, dict)]
        content = " ".join(part for part in parts if isinstance(part, str))
    if content is None:
        return ""
    if not isinstance(content, str):
        raise ConfigError(f"{path}, line {number}: the text must be a string, not {content!r:.80}")
    return content


def _wanted(names: Sequence[str], column: str | None) -> str | None:
    known = (column,) if column is not None else TEXT_COLUMNS
    return next((name for name in known if name in names), None)


def _is_customer(row: Mapping[str, Any]) -> bool:
    told = next((row[name] for name in ROLE_COLUMNS if row.get(name)), None)
    return told is None or str(told).strip().lower() in CUSTOMERS
