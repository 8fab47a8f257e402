"""Stores with something of every kind in them, made older than they are."""

import json
import os
import sqlite3
from pathlib import Path

from centroidkv import Engine
from centroidkv.serving.answers import Answer
from word_bank import ask, build_and_warm

ASKED = "did Zebulon Quibble of 12 Nowhere Lane win at the races"
PROMPT = f"{'Something worth more than a block of tokens. ' * 3}{ASKED}"
DAY = 86400
OPTIONS = {"near_misses": 1, "online_radius": 0.01}


def shift(store: Path, seconds: int) -> None:
    """Let everything in a store have been stored so many seconds later."""
    for name, query in (
        ("manifest", "UPDATE blocks SET stored_s = stored_s + ?"),
        ("history", "UPDATE seen SET last_seen_s = last_seen_s + ? WHERE times > 0"),
        ("drafts", "UPDATE drafts_ages SET stored_s = stored_s + ?"),
        ("answers", "UPDATE answers_ages SET stored_s = stored_s + ?"),
    ):
        if (store / f"{name}.sqlite").exists():
            db = sqlite3.connect(store / f"{name}.sqlite", isolation_level=None)
            db.execute(query, (seconds,))
            db.close()
    for path in (store / "heads").glob("*.json"):
        written_s, rows = path.stat().st_mtime, json.loads(path.read_bytes())
        path.write_text(json.dumps([{**r, "used_s": r["used_s"] + seconds} for r in rows]))
        os.utime(path, (written_s + seconds,) * 2)


def fill(engine: Engine) -> None:
    build_and_warm(engine)
    ask(engine, ASKED)
    engine.generate(PROMPT, max_tokens=4)
    vector = engine.router.embedder.embed([ASKED])[0]
    engine.answers.put(Answer("1", ASKED, '"who?"', 0.0), scope="s", vector=vector)
    engine.flush()
