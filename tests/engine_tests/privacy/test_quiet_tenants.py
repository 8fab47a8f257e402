"""The time to live of tenants that nobody opens any more: kept by whoever opens the store."""

import base64
import contextlib
import logging
import sqlite3
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from centroidkv import Engine
from centroidkv.errors import ConfigError
from centroidkv.privacy.places import HistoryPlace
from old_stores import ASKED, DAY, OPTIONS, PROMPT, fill, shift
from trace_parts import traces

SECRET = base64.b64encode(bytes(range(32))).decode()


def leave(open_engine: Callable[..., Engine], **options: object) -> None:
    """Leave all sorts of entries of a tenant in a store that is closed."""
    engine = open_engine(**OPTIONS, **options)
    zeta = engine.for_tenant("zeta")
    fill(zeta)
    zeta._policies.blend.heads.add(zeta.model.encode(PROMPT).token_ids)
    engine.close()


def num_rows(store: Path, name: str, table: str) -> int:
    with contextlib.closing(sqlite3.connect(store / f"{name}.sqlite")) as db:
        return int(db.execute(f"SELECT COUNT(*) FROM {table}").fetchone()[0])


@pytest.mark.parametrize("options", [{}, {"tenant_secret": SECRET}])
def test_what_a_tenant_left_is_gone_though_nobody_opens_it(
    options: dict[str, str], open_engine: Callable[..., Engine], tmp_path: Path
) -> None:
    leave(open_engine, **options)
    store = tmp_path / "store"
    assert traces(store, "Zebulon") != []
    shift(store, -2 * DAY)
    engine = open_engine(ttl_s=DAY, **OPTIONS, **options)
    engine.generate(PROMPT.replace("Zebulon", "Somebody"), max_tokens=2)
    assert engine._tenants.opened() == [engine]
    engine.close()
    assert traces(store, "Zebulon") == []
    # Its built questions stay, as do the opener's own prompt and its draft.
    assert num_rows(store, "answers", "answers") == 0
    assert list((store / "heads").glob("*.json")) == []
    assert num_rows(store, "drafts", "drafts") == 1
    engine = open_engine(**OPTIONS, **options)
    zeta = engine.for_tenant("zeta")
    assert zeta.export(question=ASKED).entries == ()
    assert zeta.stats().num_blocks == 0
    assert zeta.check().problems == []
    assert zeta.router.plan is not None


def test_what_is_young_of_a_quiet_tenant_stays(
    open_engine: Callable[..., Engine], tmp_path: Path
) -> None:
    leave(open_engine)
    open_engine(ttl_s=DAY, **OPTIONS).close()
    zeta = open_engine(**OPTIONS).for_tenant("zeta")
    assert zeta.generate(PROMPT, max_tokens=2).usage.reused_tokens > 100
    assert zeta.export(question=ASKED).counts["history"] == 1


def test_a_tenants_own_time_to_live_holds_when_nobody_opens_it(
    open_engine: Callable[..., Engine], tmp_path: Path
) -> None:
    engine = open_engine()
    zeta, acme = engine.for_tenant("zeta", ttl_s=DAY), engine.for_tenant("acme", ttl_s=9 * DAY)
    assert (zeta.config.ttl_s, acme.config.ttl_s, engine.config.ttl_s) == (DAY, 9 * DAY, None)
    for own in (zeta, acme):
        own.generate(PROMPT, max_tokens=2)
    engine.close()
    shift(tmp_path / "store", -2 * DAY)
    engine = open_engine()
    zeta, acme = engine.for_tenant("zeta"), engine.for_tenant("acme")
    assert (zeta.config.ttl_s, acme.config.ttl_s) == (DAY, 9 * DAY)
    assert zeta.stats().num_blocks == 0
    assert acme.generate(PROMPT, max_tokens=2).usage.reused_tokens > 100


def test_a_quiet_tenants_own_time_is_kept_without_opening_it(
    open_engine: Callable[..., Engine], tmp_path: Path
) -> None:
    engine = open_engine()
    engine.for_tenant("zeta", ttl_s=DAY).generate(PROMPT, max_tokens=2)
    engine.close()
    shift(tmp_path / "store", -2 * DAY)
    open_engine().close()
    assert num_rows(tmp_path / "store", "manifest", "blocks") == 0
    assert num_rows(tmp_path / "store", "drafts", "drafts") == 0


def test_an_open_tenant_has_one_time_to_live(open_engine: Callable[..., Engine]) -> None:
    engine = open_engine(ttl_s=DAY)
    zeta = engine.for_tenant("zeta", ttl_s=60)
    assert engine.for_tenant("zeta") is zeta is engine.for_tenant("zeta", ttl_s=60)
    with pytest.raises(ConfigError, match="'zeta' is open with ttl_s=60; close it first"):
        engine.for_tenant("zeta", ttl_s=61)
    with pytest.raises(ConfigError, match="ttl_s"):
        engine.for_tenant("acme", ttl_s=-1)
    zeta.close()
    assert engine.for_tenant("zeta", ttl_s=61).config.ttl_s == 61


def test_a_tenant_that_is_open_and_asks_nothing_is_swept_by_the_requests_of_others(
    open_engine: Callable[..., Engine],
) -> None:
    engine = open_engine(ttl_s=1)
    acme, zeta = engine.for_tenant("acme"), engine.for_tenant("zeta")
    zeta.generate(PROMPT, max_tokens=2)
    engine.flush()
    time.sleep(2.1)
    acme.generate("something else", max_tokens=2)
    manifest = engine.store.blocks.disk.manifest
    assert manifest.num_blocks(zeta._learner.namespace) == 0


def test_letting_go_that_was_broken_off_is_gone_on_with(
    open_engine: Callable[..., Engine], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    leave(open_engine)
    store = tmp_path / "store"
    shift(store, -2 * DAY)

    def killed(*_: object) -> int:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(HistoryPlace, "forget", killed)
        with pytest.raises(KeyboardInterrupt):
            open_engine(ttl_s=DAY, **OPTIONS)
    assert len(list((store / "expiring").glob("*.json"))) == 1
    open_engine(ttl_s=DAY, **OPTIONS).close()
    assert list((store / "expiring").glob("*.json")) == []
    assert traces(store, "Zebulon") == []


def test_what_cannot_be_swept_of_others_is_said_once_and_answers_go_on(
    open_engine: Callable[..., Engine], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    leave(open_engine)
    shift(tmp_path / "store", -2 * DAY)
    (tmp_path / "store/expiring").write_text("where a folder is needed")
    with caplog.at_level(logging.WARNING, "centroidkv"):
        engine = open_engine(ttl_s=DAY, **OPTIONS)
        assert engine.generate(PROMPT, max_tokens=2).usage.outcome == "miss"
    assert caplog.text.count("of other tenants stays for now") == 1
