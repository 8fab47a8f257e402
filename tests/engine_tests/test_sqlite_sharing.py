"""One connection a file: who closes does not close for others, and nobody gets another file's."""

import os
import sqlite3
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest

from centroidkv import Engine, Passage
from centroidkv.routing.history import History, Seen
from centroidkv.sqlite_files import open_to_write
from centroidkv.sqlite_sharing import OpenFile, SharedFiles

SCHEMA = "CREATE TABLE IF NOT EXISTS words (word TEXT)"


@pytest.fixture
def files() -> SharedFiles:
    return SharedFiles()


@pytest.fixture
def opened(files: SharedFiles, tmp_path: Path) -> Callable[[], OpenFile]:
    path = tmp_path / "words.sqlite"
    return lambda: files.open(path, lambda: open_to_write(path, SCHEMA))


def test_the_last_user_closes_the_file(opened: Callable[[], OpenFile]) -> None:
    one, other = opened(), opened()
    assert one.db is other.db
    one.close()
    one.close()
    other.db.execute("INSERT INTO words VALUES ('kept')")
    other.close()
    with pytest.raises(sqlite3.ProgrammingError, match="closed"):
        other.db.execute("SELECT 1")
    again = opened()
    assert again.db.execute("SELECT word FROM words").fetchall() == [("kept",)]
    again.close()


def test_a_file_begun_in_place_of_another_has_its_own_connection(
    opened: Callable[[], OpenFile], tmp_path: Path
) -> None:
    old = opened()
    (tmp_path / "words.sqlite").rename(tmp_path / "set-aside")
    new = opened()
    assert new.db is not old.db
    old.close()
    assert opened().db is new.db


def test_a_forked_process_uses_no_connection_of_its_parents(
    opened: Callable[[], OpenFile], monkeypatch: pytest.MonkeyPatch
) -> None:
    parents = opened()
    monkeypatch.setattr(os, "getpid", lambda: -1)
    assert opened().db is not parents.db


def test_what_cannot_be_opened_is_not_remembered(files: SharedFiles, tmp_path: Path) -> None:
    path = tmp_path / "words.sqlite"
    path.write_bytes(b"no database " * 100)
    for _ in range(2):
        with pytest.raises(sqlite3.DatabaseError):
            files.open(path, lambda: open_to_write(path, SCHEMA))
    path.unlink()
    assert files.open(path, lambda: open_to_write(path, SCHEMA)).db


def test_users_at_once_do_not_write_into_each_others_transactions(
    files: SharedFiles, tmp_path: Path
) -> None:
    users = [History(tmp_path / "history.sqlite", f"{n}", files=files) for n in range(4)]
    vector = np.zeros(4, np.float32)

    def write(number: int) -> None:
        for n in range(30):
            user = users[number]
            passages = [Passage(f"{n}", f"{number} {n}")]
            if n % 10 == 9:
                with pytest.raises(AttributeError):  # in the middle of a write, undone
                    user.add_built([Seen(f"{n}", vector, ())], {"p": None}, {})
            user.add(Seen(f"{n}", vector, (f"{n}",)), passages, is_placed=False)

    with ThreadPoolExecutor(4) as pool:
        list(pool.map(write, range(4)))
    for user in users:
        assert user.count() == 30
        assert len(user.known_passages()) == 30
        user.close()


def test_hundreds_of_tenants_do_not_take_all_file_handles(
    open_engine: Callable[..., Engine],
) -> None:
    def num_handles() -> int:
        return len(list(Path("/proc/self/fd").iterdir()))

    engine = open_engine()
    engine.for_tenant("first").generate("hello there", max_tokens=2)
    engine.flush()
    before = num_handles()
    for number in range(20):
        engine.for_tenant(f"tenant {number}").generate("hello there", max_tokens=2)
    engine.flush()
    assert num_handles() <= before + 2
