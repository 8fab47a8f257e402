"""Forgetting: what was asked is gone from every place and from every byte, and nothing else is."""

import sqlite3
from collections.abc import Callable
from pathlib import Path

import pytest

from centroidkv import Engine, Passage
from centroidkv.errors import ConfigError, StoreError
from centroidkv.models.loading import wrap_model
from centroidkv.serving.answers import Answer
from centroidkv.types import Message
from small_parts import HashEmbedder, make_llama
from trace_parts import tokens_of, traces
from word_bank import PASSAGES, QUESTIONS, ask, build_and_warm, search

SECRET = "did Zebulon Quibble of 12 Nowhere Lane win at the races on Sunday"
OTHER = "is my card blocked when it is lost in the rain"


@pytest.fixture
def asked(open_engine: Callable[..., Engine], tmp_path: Path) -> Engine:
    """An engine that was asked the secret, on disk and on a remote."""
    engine = open_engine(remote=f"file://{tmp_path / 'remote'}", near_misses=1, online_radius=0.01)
    build_and_warm(engine)
    ask(engine, OTHER)
    ask(engine, SECRET)
    engine.generate([Message("user", f"{'What I want to know. ' * 4}{SECRET}")], max_tokens=70)
    answers = engine.answers
    vector = engine.router.embedder.embed([SECRET])[0]
    answers.put(Answer("1", SECRET, '"blocked"', 0.0), scope="s", vector=vector)
    answers.put(Answer("2", OTHER, '"yes"', 0.0), scope="s", vector=vector)
    engine.flush()
    return engine


def test_an_export_names_every_place(asked: Engine) -> None:
    found = asked.export(question=f"  {SECRET.upper()} ")
    assert found.problems == ()
    assert {"records", "arenas", "plans", "chroma", "history", "answers", "blocks"} <= set(
        found.counts
    )
    tiers = {t for h in found.entries if h.place == "blocks" for t in h.about["tiers"]}
    assert tiers == {"memory", "disk", "remote"}
    assert all("Zebulon" in h.text for h in found.entries if h.place in ("plans", "history"))
    everything = asked.export()
    assert everything.counts["blocks"] > found.counts["blocks"]


def test_a_question_is_forgotten_to_the_last_byte(asked: Engine, tmp_path: Path) -> None:
    secret_tokens = tokens_of(asked, "Zebulon")
    assert traces(tmp_path, "Zebulon")
    report = asked.forget(question=SECRET)
    assert report.is_proven, report
    assert report.forgotten["history"] == 1
    assert asked.export(question=SECRET).entries == ()
    assert ask(asked, OTHER).usage.outcome == "hit"
    assert asked.answers.get("2") is not None
    assert ask(asked, QUESTIONS[0]).usage.outcome == "hit"
    assert asked.check().problems == []
    asked.close()
    assert traces(tmp_path, "Zebulon") == []
    raw = [f for f in tmp_path.rglob("*") if f.is_file() and secret_tokens in f.read_bytes()]
    assert raw == []


def test_a_passage_is_forgotten_with_the_kv_behind_it(asked: Engine, tmp_path: Path) -> None:
    text = PASSAGES["card"]
    passage = Passage.of(text)
    report = asked.forget(passage=passage.id)
    assert report.is_proven, report
    plan = asked.router.plan
    assert plan is not None
    assert passage.id not in plan.passages
    assert all(passage.id not in c.pins for c in plan.clusters)
    asked.close()
    assert traces(tmp_path, text[:60]) == []
    assert traces(tmp_path, PASSAGES["wire"][:60]) != []


def test_a_tenant_is_forgotten_and_no_other(asked: Engine, tmp_path: Path) -> None:
    acme = asked.for_tenant("acme")
    build_and_warm(acme)
    ask(acme, SECRET)
    asked.flush()
    report = asked.forget(everything=True)
    assert report.is_proven, report
    assert asked.export().entries == ()
    assert asked.router.plan is None
    assert acme.export(question=SECRET).counts["history"] == 1
    assert ask(acme, QUESTIONS[0]).usage.outcome == "hit"
    assert ask(asked, QUESTIONS[0]).usage.reused_tokens == 0
    assert acme.forget(question=SECRET).is_proven
    asked.close()
    assert traces(tmp_path, "Zebulon") == []


def test_what_is_old_is_forgotten(asked: Engine) -> None:
    assert asked.forget(older_than_s=3600).is_proven
    assert asked.export(question=SECRET).entries
    report = asked.forget(older_than_s=0)
    assert report.is_proven, report
    assert asked.export(question=SECRET).entries == ()


class OtherEmbedder(HashEmbedder):
    """The same vectors under another name."""

    fingerprint = "0" * 64


def test_models_and_embedders_of_before_count_too(
    asked: Engine, open_engine: Callable[..., Engine], tmp_path: Path, tokenizer: object
) -> None:
    asked.close()
    remote = f"file://{tmp_path / 'remote'}"
    other = wrap_model(make_llama(seed=1), tokenizer)
    engine = open_engine(model=other, embedder=OtherEmbedder(), remote=remote)
    assert engine.forget(question=SECRET).is_proven
    engine.close()
    assert traces(tmp_path, "Zebulon") == []
    again = open_engine(remote=remote)
    assert again.export(question=SECRET).entries == ()
    assert ask(again, QUESTIONS[0]).usage.cluster is not None, "the plan is there, without it"


@pytest.mark.parametrize(
    "wrong",
    [
        {},
        {"question": " "},
        {"question": "a", "passage": "b"},
        {"older_than_s": -1},
        {"older_than_s": True},
        {"question": 3},
    ],
)
def test_what_is_to_be_forgotten_must_be_said(engine: Engine, wrong: dict) -> None:
    with pytest.raises(ConfigError):
        engine.forget(**wrong)


def test_a_read_only_store_exports_and_forgets_nothing(
    asked: Engine, open_engine: Callable[..., Engine]
) -> None:
    asked.close()
    reading = open_engine(read_only=True)
    assert reading.export(question=SECRET).counts["blocks"] > 0
    with pytest.raises(StoreError, match="read-only"):
        reading.forget(question=SECRET)


def test_what_was_searched_for_is_a_word(engine: Engine) -> None:
    found = search("card")
    engine.generate(f"{found[0].text} Question: is this right", max_tokens=2)
    engine.flush()
    assert engine.export(question="is right").counts.get("blocks", 0) == 0
    assert engine.export(question="his right").counts.get("blocks", 0) == 0
    assert engine.export(question="is this RIGHT").counts["blocks"] > 0


def test_rows_whose_bits_changed_go_too(asked: Engine, tmp_path: Path) -> None:
    for name, table in (("history", "seen"), ("answers", "answers")):
        db = sqlite3.connect(tmp_path / f"store/{name}.sqlite", isolation_level=None)
        changed = db.execute(f"UPDATE {table} SET question = replace(question, 'Lane', 'Lame')")
        assert changed.rowcount > 0
        db.close()
    assert asked.forget(question=SECRET).is_proven
    asked.close()
    assert traces(tmp_path, "Zebulon") == []
