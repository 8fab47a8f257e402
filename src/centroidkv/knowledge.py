"""A knowledge base for those who have no retriever yet: passages, their vectors, a scan.

Serves the command line. Users of a framework bring its vector store instead.
"""

import csv
import io
import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from centroidkv.bounds import MOST_TEXT_BYTES, one_line, plain_json
from centroidkv.errors import CacheError, ConfigError
from centroidkv.files import json_lines, read_text
from centroidkv.protocols import Embedder
from centroidkv.types import FloatArray, Passage
from centroidkv.vault import IN_THE_CLEAR, Vault

__all__ = [
    "FILE",
    "KnowledgeBase",
    "Questions",
    "read_domain_settings",
    "read_passages",
    "read_questions",
]

FILE = "passages.jsonl"
BATCH = 1024


@dataclass(frozen=True, slots=True)
class Questions:
    """Past questions and, line by line, their domains ("" when unknown)."""

    texts: list[str]
    domains: list[str]


def read_questions(path: Path) -> Questions:
    """Read a CSV with a column `question` and perhaps `domain`; blank questions are skipped.

    Raises:
        ConfigError: Not there, not UTF-8, no such column, or nothing in it.
    """
    texts: list[str] = []
    domains: list[str] = []
    rows = csv.DictReader(io.StringIO(read_text(path), newline=""))
    if _header(rows, path) is None:
        raise ConfigError(f"{path} is empty; it needs a header line with a column 'question'")
    if "question" not in (rows.fieldnames or []):
        raise ConfigError(
            f"{path} has no column 'question' (found: "
            f"{one_line(', '.join(rows.fieldnames or []))}); "
            "name the column with the past questions 'question'"
        )
    try:
        for row in rows:
            if (row["question"] or "").strip():
                texts.append(row["question"])
                domains.append(row.get("domain") or "")
    except csv.Error as error:
        raise ConfigError(f"{path}, line {rows.reader.line_num}: {error}") from error
    if not texts:
        raise ConfigError(f"{path} holds no questions below its header")
    return Questions(texts, domains)


def read_domain_settings(path: Path) -> dict[str, dict[str, Any]]:
    """Read a JSON object of objects: by domain, its settings.

    Raises:
        ConfigError: Not there, not UTF-8, or something else.
    """
    try:
        settings = plain_json(read_text(path))
    except ValueError as error:
        raise ConfigError(f"{path}: not JSON ({error})") from error
    if not isinstance(settings, dict) or not all(isinstance(s, dict) for s in settings.values()):
        raise ConfigError(
            f'{path}: needs an object of settings by domain, as {{"loans": {{"num_clusters": 20}}}}'
        )
    return settings


def read_passages(path: Path) -> list[Passage]:
    """Read JSON lines with `id` and `text`; `title` and further keys become metadata.

    Raises:
        ConfigError: Not there, not UTF-8, not JSON, a key is missing, or nothing in it.
    """
    return _passages(read_text(path), path)


def _passages(text: str, path: Path) -> list[Passage]:
    passages: list[Passage] = []
    for number, row in json_lines(text, path):
        if not isinstance(row, dict) or not {"id", "text"} <= row.keys():
            raise ConfigError(f"{path}, line {number}: needs an object with 'id' and 'text'")
        own = row.pop("text")
        if not isinstance(own, str):
            raise ConfigError(f"{path}, line {number}: the text must be a string, not {own!r:.80}")
        own = own.strip()
        if not own:
            raise ConfigError(f"{path}, line {number}: the text is blank")
        passages.append(Passage.of(own, row))
    if not passages:
        raise ConfigError(f"{path} holds no passages")
    return passages


def _header(rows: "csv.DictReader[str]", path: Path) -> Sequence[str] | None:
    try:
        return rows.fieldnames
    except csv.Error as error:
        raise ConfigError(f"{path}, line 1: {error}") from error


class KnowledgeBase:
    """Passages with their embeddings, searched by a scan.

    Args:
        passages: What can be found.
        embedder: Embeds passages and questions.
    """

    def __init__(self, passages: Sequence[Passage], embedder: Embedder) -> None:
        self.passages = list(passages)
        self._embedder = embedder
        self._vectors: FloatArray = embedder.embed([_searched(p) for p in self.passages])

    def __call__(self, question: str) -> list[Passage]:
        return self.search(question)

    def search(self, question: str, k: int = 4) -> list[Passage]:
        """Return the `k` passages nearest to a question, best first."""
        scores = self._vectors @ self._embedder.embed([question])[0]
        return [self.passages[i] for i in np.argsort(-scores, kind="stable")[:k]]

    def embed(self, questions: Sequence[str]) -> FloatArray:
        """Embed questions as `search` does, [questions, dim]."""
        return self._embedder.embed(questions)

    def search_many(self, questions: FloatArray, k: int = 4) -> list[list[Passage]]:
        """Return what `search` returns for each of many embedded questions, [questions, dim]."""
        found: list[list[Passage]] = []
        for start in range(0, len(questions), BATCH):
            scores = questions[start : start + BATCH] @ self._vectors.T
            best = np.argsort(-scores, axis=1, kind="stable")[:, :k]
            found += [[self.passages[i] for i in row] for row in best]
        return found

    def save(self, store: Path, vault: Vault = IN_THE_CLEAR) -> None:
        """Keep the passages in a store folder, so that `centroidkv ask` finds them.

        They are written with the store's `vault`.
        """
        rows = [
            json.dumps({"id": p.id, **p.metadata, "text": p.text}, ensure_ascii=False, default=str)
            for p in self.passages
        ]
        vault.write(store / FILE, ("\n".join(rows) + "\n").encode())

    @staticmethod
    def is_in(store: Path) -> bool:
        """Tell whether a store folder holds passages."""
        return (store / FILE).exists()

    @classmethod
    def load(cls, store: Path, embedder: Embedder, vault: Vault = IN_THE_CLEAR) -> "KnowledgeBase":
        """Read the passages of a store folder with the store's `vault`.

        Raises:
            ConfigError: It holds none: it was not built by the command line; or they are damaged.
        """
        path = store / FILE
        if not path.exists():
            raise ConfigError(
                f"{store} holds no passages; build it with: "
                f"centroidkv build --questions q.csv --passages p.jsonl --store {store}"
            )
        try:
            text = vault.read(path, MOST_TEXT_BYTES).decode("utf-8-sig")
        except (CacheError, OSError, UnicodeDecodeError) as error:
            raise ConfigError(f"{path} cannot be read ({error}); build the store again") from error
        return cls(_passages(text, path), embedder)


def _searched(passage: Passage) -> str:
    title = passage.metadata.get("title")
    return f"{title}\n{passage.text}" if title else passage.text
