"""Forgetting where something cannot be read, or not be reached: it goes, or the report says so."""

import base64
import os
import sqlite3
import time
from collections.abc import Callable
from contextlib import closing
from pathlib import Path

import pytest

from centroidkv import Engine
from centroidkv.files import abandoned
from old_stores import DAY, shift
from trace_parts import traces
from word_bank import PASSAGES, ask, build_and_warm

SECRET = "did Zebulon Quibble of 12 Nowhere Lane win at the races on Sunday"
NOBODY = 2**22 + 1  # above the largest number that a process has


@pytest.fixture
def asked(open_engine: Callable[..., Engine]) -> Engine:
    engine = open_engine(near_misses=1, online_radius=0.01)
    build_and_warm(engine)
    ask(engine, SECRET)
    engine.flush()
    return engine


def test_what_a_killed_writer_left_goes(asked: Engine, tmp_path: Path) -> None:
    store = tmp_path / "store"
    for folder in ("plans", "blocks/ab"):
        (store / folder).mkdir(exist_ok=True)
        (store / folder / f".writing-{NOBODY}-left").write_text(SECRET)
    assert asked.export(question=SECRET).counts["unfinished"] == 2
    report = asked.forget(question=SECRET)
    assert report.is_proven, report
    asked.close()
    assert traces(tmp_path, "Zebulon") == []


def test_a_repair_takes_what_a_killed_writer_left(asked: Engine, tmp_path: Path) -> None:
    left = tmp_path / f"store/plans/.writing-{NOBODY}-left"
    left.write_text(SECRET)
    assert asked.check().is_clean
    assert left.exists()
    asked.check(repair=True)
    assert not left.exists()


def test_what_is_just_being_written_is_left_alone(tmp_path: Path) -> None:
    own, other, old, nameless = (
        tmp_path / f".writing-{name}"
        for name in (f"{os.getpid()}-x", f"{os.getppid()}-x", f"{os.getppid()}-y", "x")
    )
    for path in (own, other, old, nameless, tmp_path / ".writing-store.json"):
        path.write_bytes(b"")
    an_hour_ago = time.time() - 3600
    os.utime(old, (an_hour_ago, an_hour_ago))
    assert abandoned(tmp_path) == sorted([old, nameless])
    os.utime(own, (an_hour_ago, an_hour_ago))  # of another process that had this number
    assert own in abandoned(tmp_path)


def test_a_plan_version_that_cannot_be_read_goes(asked: Engine, tmp_path: Path) -> None:
    plan = asked.router.plan
    assert plan is not None
    path = next((tmp_path / "store/plans").glob("*.plan"))
    older = path.with_name(f"{plan.namespace[-16:]}-000099.plan")
    raw = bytearray(path.read_bytes())
    raw[60] ^= 1
    older.write_bytes(bytes(raw))
    report = asked.forget(question=SECRET)
    assert report.is_proven, report
    assert not older.exists()
    asked.close()
    assert traces(tmp_path, "Zebulon") == []


def test_a_damaged_block_that_no_row_knows_goes(asked: Engine) -> None:
    disk = asked.store.blocks.disk
    raw = disk.path(next(iter(disk.manifest.rows())).id).read_bytes()
    path = disk.path("ab" * 32)
    path.parent.mkdir(exist_ok=True)
    path.write_bytes(raw[:-7])
    assert asked.forget(question=SECRET).is_proven
    assert not path.exists()


@pytest.fixture
def evicted(open_engine: Callable[..., Engine], tmp_path: Path) -> Engine:
    """An engine whose KV is on a remote alone."""
    engine = open_engine(remote={"url": f"file://{tmp_path / 'remote'}", "min_tokens": 64})
    build_and_warm(engine)
    engine.flush()
    blocks = engine.store.blocks
    ids = [row.id for row in blocks.disk.manifest.rows()]
    blocks.disk.manifest.remove(ids)
    for block in ids:
        blocks.memory.delete(block)
        blocks.disk.path(block).unlink()
    return engine


def test_entries_of_a_remote_that_cannot_be_read_go(evicted: Engine, tmp_path: Path) -> None:
    entries = sorted(p for p in (tmp_path / "remote").rglob("*") if p.is_file())
    entries[0].write_bytes(b"damaged")
    assert evicted.forget(question=SECRET).is_proven
    assert not entries[0].exists()
    assert any(p.exists() for p in entries), "only what continues it goes too"


def test_what_a_remote_withholds_is_a_problem(
    evicted: Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    remote = evicted.store.blocks.remote
    assert remote is not None

    def fail(name: str, most_bytes: int) -> bytes:
        raise OSError("a bad line")

    with monkeypatch.context() as patch:
        patch.setattr(remote._store, "read", fail)
        report = evicted.forget(question=SECRET)
    assert not report.is_proven
    assert "the remote does not" in report.problems[0]


def test_a_remote_that_is_not_open_is_a_doubt(
    open_engine: Callable[..., Engine], tmp_path: Path
) -> None:
    remote = {"url": f"file://{tmp_path / 'remote'}", "min_tokens": 64}
    with open_engine(remote=remote) as engine:
        build_and_warm(engine)
    with open_engine() as engine:
        report = engine.forget(everything=True)
        assert not report.is_proven
        assert "remote='...'" in report.problems[0]
        assert engine.export().problems == report.problems
    with open_engine(remote=remote) as engine:
        assert engine.forget(everything=True).is_proven
    assert not [p for p in (tmp_path / "remote").rglob("*") if p.is_file()]


def test_keyed_names_without_the_secret_are_a_doubt(open_engine: Callable[..., Engine]) -> None:
    secret = base64.b64encode(bytes(32)).decode()
    with open_engine(tenant_secret=secret) as engine:
        build_and_warm(engine.for_tenant("acme"))
    with open_engine() as engine:
        report = engine.for_tenant("acme").forget(everything=True)
        assert not report.is_proven
        assert "tenant_secret" in report.problems[0]
    with open_engine(tenant_secret=secret) as engine:
        report = engine.for_tenant("acme").forget(everything=True)
        assert report.is_proven
        assert report.forgotten["blocks"] > 0


def test_a_damaged_owner_is_mended_at_the_next_opening(
    open_engine: Callable[..., Engine], tmp_path: Path
) -> None:
    with open_engine() as engine:
        build_and_warm(engine)
    db = sqlite3.connect(tmp_path / "store/manifest.sqlite")
    db.execute("UPDATE owners SET owner = substr(owner, 1, length(owner) - 1) || '0'")
    db.execute("UPDATE owners SET owner = substr(owner, 1, length(owner) - 1) || '1' WHERE 0")
    db.commit()
    db.close()
    with open_engine() as engine:
        assert engine.forget(everything=True).forgotten["blocks"] > 0
        assert engine.stats().num_blocks == 0


HARMS = [
    "UPDATE owners SET owner = '00' || substr(owner, 3) WHERE model <> ''",
    "DELETE FROM owners",
]


@pytest.mark.parametrize("harm", HARMS)
def test_kv_of_which_nothing_tells_whose_it_is_is_no_proof(
    open_engine: Callable[..., Engine], tmp_path: Path, harm: str
) -> None:
    with open_engine() as engine:
        build_and_warm(engine.for_tenant("acme"))
        assert engine.forget(everything=True).is_proven
    with closing(sqlite3.connect(tmp_path / "store/manifest.sqlite")) as db, db:
        db.execute(harm)
    with open_engine() as engine:
        report = engine.forget(everything=True)
        assert not report.is_proven
        assert "does not tell whose some of the KV is" in report.problems[0]
        report = engine.for_tenant("acme").forget(everything=True)
        assert report.is_proven
        assert report.forgotten["blocks"] > 0
        assert engine.forget(everything=True).is_proven


def test_a_damaged_owner_is_told_by_a_check(
    open_engine: Callable[..., Engine], tmp_path: Path
) -> None:
    with open_engine() as engine:
        build_and_warm(engine.for_tenant("acme"))
    with closing(sqlite3.connect(tmp_path / "store/manifest.sqlite")) as db, db:
        db.execute(HARMS[0])
    with open_engine() as engine:
        assert "1 rows that tell whose KV is" in engine.check().problems[0]
        assert "forgot these rows" in engine.check(repair=True).repaired[0]
        assert engine.check().problems == []
        assert not engine.forget(everything=True).is_proven  # the row is lost, as its KV is not


@pytest.mark.parametrize("harm", HARMS)
def test_kv_of_which_nothing_tells_whose_it_is_does_not_outlive_the_others(
    open_engine: Callable[..., Engine], tmp_path: Path, harm: str
) -> None:
    with open_engine() as engine:
        build_and_warm(engine.for_tenant("acme"))
        num_blocks = engine.store.blocks.disk.manifest.num_blocks()
    with closing(sqlite3.connect(tmp_path / "store/manifest.sqlite")) as db, db:
        db.execute(harm)
    with open_engine(ttl_s=DAY) as engine:
        assert engine.store.blocks.disk.manifest.num_blocks() == num_blocks > 0
    shift(tmp_path / "store", -2 * DAY)
    with open_engine(ttl_s=DAY) as engine:
        assert engine.store.blocks.disk.manifest.num_blocks() == 0


@pytest.mark.parametrize("odd", ["blocks SET stored_s = 'x'", "owners SET owner = 'x'"])
def test_an_odd_value_has_the_manifest_made_again(
    open_engine: Callable[..., Engine], tmp_path: Path, odd: str
) -> None:
    with open_engine() as engine:
        build_and_warm(engine)
        num_blocks = engine.stats().num_blocks
    db = sqlite3.connect(tmp_path / "store/manifest.sqlite")
    for trigger in ("block_stored", "block_used"):
        db.execute(f"DROP TRIGGER {trigger}")
    db.execute(f"UPDATE {odd}")
    db.commit()
    db.close()
    with open_engine() as engine:
        assert engine.stats().num_blocks == num_blocks
        assert engine.export(passage=PASSAGES["card"]).problems == ()


@pytest.mark.parametrize("name", ["no/notes.txt", "ab/abcd.tar"])
def test_what_else_lies_on_a_remote_stays(evicted: Engine, tmp_path: Path, name: str) -> None:
    strange = tmp_path / "remote" / name
    strange.parent.mkdir(exist_ok=True)
    strange.write_text("of another program")
    report = evicted.forget(question=SECRET)
    assert report.is_proven, report
    assert strange.exists()
