"""A time to live: what is too old is not served and leaves every place, whatever the clock does."""

import sqlite3
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from centroidkv import Engine
from centroidkv.errors import ConfigError, StoreError
from old_stores import ASKED, DAY, OPTIONS, PROMPT, fill, shift
from word_bank import QUESTIONS


@pytest.fixture
def store(open_engine: Callable[..., Engine], tmp_path: Path) -> Path:
    engine = open_engine(**OPTIONS)
    fill(engine)
    engine.close()
    return tmp_path / "store"


def test_what_is_old_is_gone_when_a_store_is_opened(
    store: Path, open_engine: Callable[..., Engine]
) -> None:
    shift(store, -2 * DAY)
    engine = open_engine(ttl_s=DAY, **OPTIONS)
    assert engine.export(question=ASKED).entries == ()
    assert engine.stats().num_blocks == 0
    assert engine.answers.all() == []
    assert engine.generate(PROMPT, max_tokens=4).usage.reused_tokens == 0
    assert engine.router.plan is not None
    assert engine.router.plan.clusters[0].representative in QUESTIONS
    engine.close()
    assert [f for f in store.rglob("*") if f.is_file() and b"Zebulon" in f.read_bytes()] == []


def test_what_is_young_or_used_stays(store: Path, open_engine: Callable[..., Engine]) -> None:
    shift(store, -2 * DAY)
    without = open_engine(**OPTIONS)
    assert without.generate(PROMPT, max_tokens=4).usage.reused_tokens > 100
    without.close()
    engine = open_engine(ttl_s=DAY, **OPTIONS)
    assert engine.generate(PROMPT, max_tokens=4).usage.reused_tokens > 100
    assert engine.check().problems == []


def test_nothing_too_old_is_served_while_the_store_is_open(
    open_engine: Callable[..., Engine],
) -> None:
    engine = open_engine(ttl_s=1)
    engine.generate(PROMPT, max_tokens=2)
    engine.flush()
    time.sleep(1.1)
    usage = engine.generate(PROMPT, max_tokens=2).usage
    assert (usage.reused_tokens, usage.drafted_tokens) == (0, 0)


def test_a_clock_set_back_loses_nothing_and_keeps_nothing_for_ever(
    store: Path, open_engine: Callable[..., Engine]
) -> None:
    shift(store, 400 * DAY)  # stored while the clock was more than a year ahead
    engine = open_engine(ttl_s=DAY, **OPTIONS)
    assert engine.generate(PROMPT, max_tokens=4).usage.reused_tokens > 100
    engine.close()
    shift(store, -2 * DAY)
    assert open_engine(ttl_s=DAY, **OPTIONS).export(question=ASKED).entries == ()


def test_another_tenants_entries_stay(store: Path, open_engine: Callable[..., Engine]) -> None:
    shift(store, -2 * DAY)
    engine = open_engine(ttl_s=DAY, tenant="acme", **OPTIONS)
    engine.generate(PROMPT, max_tokens=4)
    engine.close()
    engine = open_engine(**OPTIONS)
    assert engine.export(question=ASKED).counts["history"] == 1


def test_a_manifest_of_before_counts_from_now(
    store: Path, open_engine: Callable[..., Engine]
) -> None:
    db = sqlite3.connect(store / "manifest.sqlite", isolation_level=None)
    for trigger in ("block_stored", "block_used"):
        db.execute(f"DROP TRIGGER {trigger}")
    db.execute("ALTER TABLE blocks DROP COLUMN stored_s")
    db.close()
    engine = open_engine(ttl_s=DAY, **OPTIONS)
    assert engine.generate(PROMPT, max_tokens=4).usage.reused_tokens > 100


@pytest.mark.parametrize("wrong", [0, -1, "1 day", True])
def test_a_time_to_live_is_a_number(wrong: object, open_engine: Callable[..., Engine]) -> None:
    with pytest.raises(ConfigError, match="ttl_s"):
        open_engine(ttl_s=wrong)


def test_what_cannot_be_swept_is_not_served(
    store: Path, open_engine: Callable[..., Engine]
) -> None:
    shift(store, -2 * DAY)
    (store / "forgetting").write_text("where a folder is needed")
    engine = open_engine(ttl_s=DAY, **OPTIONS)
    done = engine.generate(PROMPT, max_tokens=4)
    assert (done.usage.outcome, done.usage.reused_tokens) == ("bypass", 0)
    with pytest.raises(StoreError, match="too old"):
        _ = engine.answers
    (store / "forgetting").unlink()
    again = engine.generate(PROMPT, max_tokens=4)
    assert (again.usage.outcome, again.token_ids) == ("miss", done.token_ids)
    assert engine.answers.get("1") is None


def test_what_prompts_began_with_is_too_old_when_it_was_not_used(
    open_engine: Callable[..., Engine], tmp_path: Path
) -> None:
    engine = open_engine(ttl_s=DAY)
    old, used = (engine.model.encode(f"{n} {PROMPT}").token_ids for n in ("old", "used"))
    for head in (old, used):
        engine._policies.blend.heads.add(head)
    engine.close()
    shift(tmp_path / "store", -2 * DAY)
    engine = open_engine()  # keeps all, and uses one
    assert engine._policies.blend.heads.find(used) is not None
    engine.close()
    heads = open_engine(ttl_s=DAY)._policies.blend.heads
    assert [h.token_ids for h in heads.held()] == [used]


def test_forgetting_what_is_old_forgets_old_heads(open_engine: Callable[..., Engine]) -> None:
    engine = open_engine()
    engine._policies.blend.heads.note(range(100))
    engine._policies.blend.heads.add(range(50, 90))
    assert engine.forget(older_than_s=60).forgotten.get("heads") is None
    report = engine.forget(older_than_s=0)
    assert (report.forgotten.get("heads"), report.is_proven) == (2, True)
    assert engine._policies.blend.heads.held() == []
