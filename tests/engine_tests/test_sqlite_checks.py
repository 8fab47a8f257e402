"""Rows of texts: what was written is read, and what was changed on the disk is not."""

import sqlite3
from collections.abc import Callable
from pathlib import Path

import pytest

from centroidkv import Engine
from centroidkv.sqlite_checks import Checked
from centroidkv.sqlite_files import (
    PAGE_CACHE_KIB,
    open_or_begin,
    open_to_read,
    open_to_write,
)

SCHEMA = """
CREATE TABLE IF NOT EXISTS said (
    number INTEGER PRIMARY KEY, name TEXT NOT NULL, text TEXT NOT NULL, times INTEGER DEFAULT 0,
    UNIQUE (name)
);
"""
SAID = Checked("said", key=("number",), columns=("number", "name", "text"))
PUT = (
    "INSERT INTO said (name, text) VALUES (?, ?)"
    " ON CONFLICT (name) DO UPDATE SET text = excluded.text"
)


def texts(db: sqlite3.Connection) -> list[str]:
    return [text for (text,) in db.execute(f"SELECT text FROM {SAID.sound} ORDER BY number")]


def opened(path: Path) -> sqlite3.Connection:
    return open_to_write(path, SCHEMA, checked=[SAID])


def test_a_flipped_bit_in_a_text_takes_its_row_away_and_no_other(tmp_path: Path) -> None:
    path = tmp_path / "said.sqlite"
    db = opened(path)
    db.executemany(PUT, [("one", "a lost card"), ("two", "a wire abroad"), ("one", "a found card")])
    assert texts(db) == ["a found card", "a wire abroad"]
    db.close()
    raw = path.read_bytes()
    path.write_bytes(raw.replace(b"a wire abroad", b"a wire aboard"))
    db = opened(path)
    assert texts(db) == ["a found card"]
    assert SAID.num_unsound(db) == 1
    SAID.drop_unsound(db)
    assert (SAID.num_unsound(db), texts(db)) == (0, ["a found card"])
    db.execute(PUT, ("two", "a wire abroad"))
    db.execute("UPDATE said SET times = times + 1")
    assert texts(db) == ["a found card", "a wire abroad"]
    db.execute("DELETE FROM said WHERE name = 'one'")
    assert texts(db) == ["a wire abroad"]
    db.close()


def test_a_text_that_is_no_utf_8_any_more_is_read_as_unsound(tmp_path: Path) -> None:
    path = tmp_path / "said.sqlite"
    db = opened(path)
    db.execute(PUT, ("one", "a lost card"))
    db.close()
    path.write_bytes(path.read_bytes().replace(b"a lost card", b"a \xffost card"))
    db = opened(path)
    assert texts(db) == []
    assert db.execute("SELECT text FROM said").fetchone() == ("a �ost card",)
    db.close()


def test_rows_of_a_file_without_digests_count_as_sound(tmp_path: Path) -> None:
    path = tmp_path / "said.sqlite"
    db = open_to_write(path, SCHEMA)
    db.execute(PUT, ("one", "a lost card"))
    db.close()
    db = opened(path)
    assert texts(db) == ["a lost card"]
    db.close()


def test_damage_that_sqlite_tells_of_in_bytes_that_are_no_text_is_damage(tmp_path: Path) -> None:
    path, quarantine = tmp_path / "said.sqlite", tmp_path / "quarantine"
    opened(path).close()
    raw = path.read_bytes().replace(b"saidsaid", b"saids\xedid")  # kind, name, table
    raw = raw.replace(b"tablesaid", b"tables\xedid").replace(b"CREATE TABLE", b"CREATE TABLX")
    path.write_bytes(raw)
    with pytest.raises(UnicodeDecodeError):  # what Python itself makes of it
        sqlite3.connect(path).execute("SELECT 1 FROM said")
    for open_it in (lambda: opened(path), lambda: open_to_read(path).execute("SELECT 1 FROM said")):
        with pytest.raises(sqlite3.DatabaseError, match="malformed"):
            open_it()
    db = open_or_begin(path, SCHEMA, quarantine=quarantine)
    assert raw in [p.read_bytes() for p in quarantine.glob("*")]
    assert db.execute("SELECT * FROM said").fetchall() == []
    db.close()


@pytest.mark.parametrize("at", [0, 18, 40, 100])
def test_a_file_damaged_where_sqlite_sees_it_is_set_aside(tmp_path: Path, at: int) -> None:
    path, quarantine = tmp_path / "said.sqlite", tmp_path / "quarantine"
    db = opened(path)
    db.execute(PUT, ("one", "a lost card"))
    db.close()
    raw = bytearray(path.read_bytes())
    raw[at : at + 4] = b"\xff\xfe\xfd\xfc"
    path.write_bytes(raw)
    db = open_or_begin(path, SCHEMA, quarantine=quarantine)
    was_set_aside = bool(list(quarantine.glob("*")))
    SAID.lay_out(db)
    assert texts(db) == ([] if was_set_aside else ["a lost card"])
    db.close()


def test_a_connection_holds_few_pages_however_it_is_opened(tmp_path: Path) -> None:
    path = tmp_path / "said.sqlite"
    written = opened(path)
    read = open_to_read(path)
    for db in (written, read):
        assert db.execute("PRAGMA cache_size").fetchone() == (-PAGE_CACHE_KIB,)
        db.close()


def test_opening_a_damaged_file_to_read_raises_and_leaves_no_handle(tmp_path: Path) -> None:
    path = tmp_path / "said.sqlite"
    path.write_bytes(b"no database " * 1000)
    before = len(list(Path("/proc/self/fd").iterdir()))
    with pytest.raises(sqlite3.DatabaseError):
        open_to_read(path)
    assert len(list(Path("/proc/self/fd").iterdir())) == before


@pytest.mark.parametrize("table", ["seen", "answers"])
def test_a_row_is_looked_up_with_its_digest_by_an_index(
    open_engine: Callable[..., Engine], table: str
) -> None:
    engine = open_engine()
    if table == "seen":
        history = engine._learner.history
        assert history is not None
        db = history._db
    else:
        db = engine.answers._connected()
    plan = db.execute(
        f"EXPLAIN QUERY PLAN SELECT * FROM sound_{table} WHERE namespace = 'n' ORDER BY number"
    ).fetchall()
    assert not [step for *_, step in plan if step.startswith("SCAN c")], plan
