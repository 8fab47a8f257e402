"""What requests cost, apart per plan version and model: outcomes, tokens, time to the first token.

A SQLite file in the store folder, of numbers alone. Times are kept as a histogram, so a median is
that of a bucket nine per cent wide.
"""

import logging
import math
import sqlite3
from collections import defaultdict
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from centroidkv.sqlite_files import open_or_begin, open_to_read
from centroidkv.sqlite_scrubbing import erasing, scrub
from centroidkv.sqlite_sharing import SharedFiles
from centroidkv.types import Usage

_log = logging.getLogger("centroidkv")

FILE = "figures.sqlite"
BUCKETS_PER_OCTAVE = 8
_SCHEMA = """
CREATE TABLE IF NOT EXISTS figures (
    plan TEXT NOT NULL, model TEXT NOT NULL, name TEXT NOT NULL, value REAL NOT NULL,
    PRIMARY KEY (plan, model, name)
) WITHOUT ROWID;
"""
_ADD = """
INSERT INTO figures VALUES (?, ?, ?, ?)
ON CONFLICT (plan, model, name) DO UPDATE SET value = value + excluded.value
"""

__all__ = ["FigureFile", "Figures", "read_figures"]


@dataclass(frozen=True, slots=True)
class Figures:
    """Requests of one plan version and one model.

    `plan` is empty for requests without a route; `model` is the KV namespace. Times count from
    the question to the first token, retrieval by the user's own retriever left out.
    """

    plan: str
    model: str
    requests: int
    hits: int
    partials: int
    misses: int
    prompt_tokens: int
    reused_tokens: int
    ttft_mean_s: float
    ttft_p50_s: float

    @property
    def reused_share(self) -> float:
        return self.reused_tokens / self.prompt_tokens if self.prompt_tokens else 0.0


class FigureFile:
    """The figures of a store. Safe for many threads and processes."""

    def __init__(self, folder: Path, *, quarantine: Path, files: SharedFiles | None = None) -> None:
        path = folder / FILE
        connect = partial(open_or_begin, path, _SCHEMA, quarantine=quarantine)
        self._file = (files or SharedFiles()).open(path, connect)
        self._lock, self._db = self._file.lock, self._file.db

    def add(self, usage: Usage, *, model: str) -> None:
        """Count one request."""
        ttft_s = usage.embed_s + usage.route_s + usage.ttft_s
        values: dict[str, float] = {
            "requests": 1,
            f"outcome_{usage.outcome}": 1,
            "prompt_tokens": usage.prompt_tokens,
            "reused_tokens": usage.cached_tokens,
            "ttft_s": ttft_s,
            f"ttft_{_bucket(ttft_s)}": 1,
        }
        rows = [(usage.plan or "", model, name, value) for name, value in values.items()]
        with self._lock:
            self._db.execute("BEGIN IMMEDIATE")
            try:
                self._db.executemany(_ADD, rows)
            except BaseException:
                self._db.execute("ROLLBACK")
                raise
            self._db.execute("COMMIT")

    def forget(self, names: Collection[str]) -> None:
        """Remove the figures of plans and models."""
        with self._lock:
            erasing(self._db)
            for name in names:
                query = "DELETE FROM figures WHERE plan = ? OR model = ?"
                self._db.execute(query, (name, name))

    def scrub(self) -> bool:
        """Rewrite the file without what was removed; tell whether that could be done."""
        with self._lock:
            return scrub(self._db)

    def close(self) -> None:
        self._file.close()


def read_figures(folder: Path) -> list[Figures]:
    """Return the figures of a store folder, by plan and model; [] where none can be read."""
    path = folder / FILE
    if not path.exists():
        return []
    found: defaultdict[tuple[str, str], dict[str, float]] = defaultdict(dict)
    try:
        db = open_to_read(path)
        try:
            for plan, model, name, value in db.execute("SELECT * FROM figures"):
                found[plan, model][name] = value
        finally:
            db.close()
    except sqlite3.Error as error:
        _log.warning("the figures in %s cannot be read: %s", path, error)
        return []
    return [_figures(*key, found[key]) for key in sorted(found)]


def _bucket(seconds: float) -> int:
    return round(math.log2(max(seconds, 1e-6)) * BUCKETS_PER_OCTAVE)


def _median(values: Mapping[str, float]) -> float:
    counts = sorted(
        (int(name.removeprefix("ttft_")), count)
        for name, count in values.items()
        if name.startswith("ttft_") and name != "ttft_s"
    )
    half, seen = sum(count for _, count in counts) / 2, 0.0
    for bucket, count in counts:
        seen += count
        if seen >= half:
            return float(2.0 ** (bucket / BUCKETS_PER_OCTAVE))
    return 0.0


def _figures(plan: str, model: str, values: Mapping[str, float]) -> Figures:
    def number(name: str) -> int:
        return int(values.get(name, 0))

    requests = number("requests")
    return Figures(
        plan,
        model,
        requests,
        number("outcome_hit"),
        number("outcome_partial"),
        number("outcome_miss"),
        number("prompt_tokens"),
        number("reused_tokens"),
        ttft_mean_s=values.get("ttft_s", 0.0) / max(1, requests),
        ttft_p50_s=_median(values),
    )
