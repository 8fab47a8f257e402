"""Kept answers: the oldest go first, and a bad file costs time, never an error in SQLite's name."""

import resource
import sqlite3
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest

from centroidkv.errors import ConfigError, StoreError
from centroidkv.serving.answers import Answer, AnswerStore

VECTOR = np.ones(4, np.float32)


@pytest.fixture
def opened(tmp_path: Path) -> Iterator[Callable[..., AnswerStore]]:
    stores: list[AnswerStore] = []

    def opening(namespace: str = "one") -> AnswerStore:
        stores.append(AnswerStore(tmp_path, namespace))
        return stores[-1]

    yield opening
    for store in stores:
        store.close()


def keep(store: AnswerStore, name: str, text: str = "text", *, maxsize: int | None = None) -> None:
    answer = Answer(name, f"question {name}", text, 0.0)
    store.put(answer, scope="scope", vector=VECTOR, maxsize=maxsize)


def kept(store: AnswerStore, names: str) -> str:
    """Return those of the names, one letter each, that the store holds."""
    return "".join(name for name in names if store.get(name) is not None)


def test_the_oldest_goes_when_one_too_many_is_put(opened) -> None:
    store = opened()
    for name in "abcd":
        keep(store, name, maxsize=3)
    assert kept(store, "abcd") == "bcd"


def test_without_a_size_nothing_is_dropped(opened) -> None:
    store = opened()
    for name in "abcdefgh":
        keep(store, name)
    assert kept(store, "abcdefgh") == "abcdefgh"


def test_replacing_keeps_the_age(opened) -> None:
    store = opened()
    for name in "ab":
        keep(store, name, maxsize=3)
    keep(store, "a", "a newer text", maxsize=3)
    for name in "cd":
        keep(store, name, maxsize=3)
    assert kept(store, "abcd") == "bcd"


def test_replacing_at_full_size_drops_the_oldest_all_the_same(opened) -> None:
    store = opened()
    for name in "abc":
        keep(store, name, maxsize=3)
    keep(store, "b", "a newer text", maxsize=3)
    assert kept(store, "abc") == "bc"
    assert store.get("b") == Answer("b", "question b", "a newer text", 0.0)


def test_a_smaller_size_than_is_kept_drops_down_to_it(opened) -> None:
    store = opened()
    for name in "abcdef":
        keep(store, name)
    store.close()
    later = opened()
    keep(later, "g", maxsize=2)
    assert kept(later, "abcdefg") == "fg"


def test_another_namespace_is_neither_counted_nor_dropped(opened) -> None:
    one, two = opened("one"), opened("two")
    for name in "ab":
        keep(one, name, maxsize=2)
        keep(two, name, maxsize=2)
    keep(two, "c", maxsize=2)
    assert (kept(one, "abc"), kept(two, "abc")) == ("ab", "bc")


def test_age_survives_deleting_and_reopening(opened) -> None:
    store = opened()
    for name in "abc":
        keep(store, name, maxsize=3)
    assert store.delete(answer_id="c") == 1
    store.close()
    later = opened()
    for name in "de":
        keep(later, name, maxsize=3)
    assert kept(later, "abcde") == "bde"


def test_many_threads_and_connections_stay_within_the_size(opened) -> None:
    stores = [opened(), opened()]

    def put(number: int) -> None:
        keep(stores[number % 2], f"{number:03}", maxsize=5)

    with ThreadPoolExecutor(8) as threads:
        list(threads.map(put, range(100)))
    assert stores[0].delete() == 5


def test_damage_behind_the_first_page_is_met_on_use_and_set_aside(
    opened, tmp_path: Path, caplog
) -> None:
    store = opened()
    for number in range(200):
        keep(store, f"{number:03}", "a text " * 50)
    store.close()
    path = tmp_path / "answers.sqlite"
    raw = path.read_bytes()
    assert len(raw) > 10 * 4096
    path.write_bytes(raw[:4096] + b"\xff" * (len(raw) - 4096))
    damaged = opened()
    assert damaged.get("150") is None
    keep(damaged, "a")
    assert kept(damaged, "a") == "a"
    assert (tmp_path / "quarantine/answers.sqlite").exists()
    assert [r for r in caplog.records if "a new one is begun" in r.message]


@contextmanager
def no_file_may_grow() -> Iterator[None]:
    """What a full disk does to a write."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (0, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


def test_a_full_disk_is_a_store_error_and_loses_nothing(opened) -> None:
    store = opened()
    keep(store, "a")
    with no_file_may_grow(), pytest.raises(StoreError, match=r"answers\.sqlite"):
        keep(store, "b", maxsize=1)
    assert kept(store, "ab") == "a"
    keep(store, "b", maxsize=1)
    assert kept(store, "ab") == "b"


def test_a_file_that_cannot_be_opened_is_a_store_error(tmp_path: Path) -> None:
    (tmp_path / "answers.sqlite").mkdir()
    with pytest.raises(StoreError, match=r"answers\.sqlite"):
        AnswerStore(tmp_path, "one")


def test_a_closed_store_says_so(opened) -> None:
    store = opened()
    store.close()
    store.close()
    with pytest.raises(ConfigError, match="closed"):
        store.get("a")


def test_only_the_owner_reads_it(opened, tmp_path: Path) -> None:
    keep(opened(), "a")
    assert (tmp_path / "answers.sqlite").stat().st_mode & 0o777 == 0o600
    with sqlite3.connect(tmp_path / "answers.sqlite") as db:
        assert db.execute("PRAGMA integrity_check").fetchone() == ("ok",)
    db.close()
