"""Labelled pairs of questions, and the CSV file that they are read from."""

import csv
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from centroidkv.errors import ConfigError

__all__ = ["LabelledPair", "check_both_classes", "read_pairs"]

_LABELS = {"1": True, "true": True, "0": False, "false": False}
_REMEDY = "write a line as question_a,question_b,same_answer with 1 or 0 last"


@dataclass(frozen=True, slots=True)
class LabelledPair:
    """Two questions and whether one answer serves both."""

    question: str
    candidate: str
    same_answer: bool


def read_pairs(path: str | Path) -> list[LabelledPair]:
    """Read a CSV file with the columns question_a, question_b and same_answer (1 or 0).

    A header line is skipped; `true` and `false` are read as 1 and 0.

    Raises:
        ConfigError: There is no file, or a line cannot be used; names the line and the remedy.
    """
    source = Path(path)
    pairs = []
    try:
        with source.open(newline="", encoding="utf-8-sig") as file:
            rows = csv.reader(file)
            for row in rows:
                label = row[2].strip().casefold() if len(row) > 2 else ""
                if not row or (rows.line_num == 1 and row[0].strip().casefold().startswith("ques")
                               and label not in _LABELS):  # fmt: skip
                    continue
                pairs.append(_pair(row, f"{source}, line {rows.line_num}"))
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise ConfigError(f"cannot read pairs from {source}: {error}; give a UTF-8 CSV") from error
    check_both_classes(pairs, str(source))
    return pairs


def check_both_classes(pairs: list[LabelledPair], where: str) -> None:
    """Refuse pairs from which nothing can be learned.

    Raises:
        ConfigError: There are none, all have the same label, or one has neither.
    """
    if not pairs:
        raise ConfigError(f"{where}: no pairs; {_REMEDY}")
    for number, pair in enumerate(pairs, 1):
        if not isinstance(pair.same_answer, bool | np.bool_):
            raise ConfigError(
                f"{where}: same_answer of pair {number} is {pair.same_answer!r}; give True or False"
            )
    if len({p.same_answer for p in pairs}) == 1:
        has, lacks = ("1", "0") if pairs[0].same_answer else ("0", "1")
        raise ConfigError(
            f"{where}: all {len(pairs)} pairs are labelled {has}; add pairs labelled {lacks}"
        )


def _pair(row: list[str], where: str) -> LabelledPair:
    if len(row) < 3 or not row[2].strip():
        raise ConfigError(f"{where}: the label is missing; {_REMEDY}")
    if len(row) > 3:
        raise ConfigError(f"{where}: {len(row)} columns; put questions with commas in quotes")
    question, candidate, label = (cell.strip() for cell in row)
    if not question or not candidate:
        raise ConfigError(f"{where}: a question is empty; {_REMEDY}")
    if label.casefold() not in _LABELS:
        raise ConfigError(f"{where}: the label is {label!r}; {_REMEDY}")
    return LabelledPair(question, candidate, _LABELS[label.casefold()])
