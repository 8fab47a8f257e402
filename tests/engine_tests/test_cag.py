"""`preset="cag"`, one context for all: what it pins, whom it admits, when it is loaded."""

from collections.abc import Callable

import pytest

from centroidkv import Engine
from centroidkv.models.loading import wrap_model
from small_parts import make_llama
from word_bank import PASSAGES, QUESTIONS, ask, search

FOREIGN = "zebra stripes"


@pytest.fixture
def cag(open_engine: Callable[..., Engine]) -> Callable[..., Engine]:
    def opening(**settings: object) -> Engine:
        engine = open_engine(preset="cag", **settings)
        engine.build(questions=QUESTIONS, retriever=search)
        return engine

    return opening


def pins(engine: Engine, question: str) -> list[str]:
    return [p.text for p in engine.pinned(engine.route(question))]


def test_every_question_gets_the_whole_context_in_one_order(cag) -> None:
    engine = cag()
    assert len(engine.router.plan.clusters) == 1
    first = pins(engine, QUESTIONS[0])
    assert sorted(first) == sorted(PASSAGES.values())
    assert all(pins(engine, q) == first for q in [*QUESTIONS, FOREIGN])


def test_the_context_is_what_is_most_wanted_within_the_models_own(tokenizer, cag) -> None:
    # Three quarters of 700 tokens, which are bytes here, hold two of the passages of 240 or so.
    engine = cag(model=wrap_model(make_llama(positions=700), tokenizer))
    shown = pins(engine, FOREIGN)
    assert len(shown) == 2
    wanted = dict.fromkeys(PASSAGES.values(), 0.0)
    for question in QUESTIONS:
        for rank, passage in enumerate(search(question), start=1):
            wanted[passage.text] += 1 / rank
    assert wanted[shown[0]] >= wanted[shown[1]] >= min(wanted.values())
    assert wanted[shown[0]] == max(wanted.values())


def test_a_warmed_context_serves_a_foreign_question_and_loses_nothing_found(cag) -> None:
    engine = cag()
    report = engine.warm(lambda q: ask(engine, q))
    assert (report.num_clusters, report.filled, report.problems) == (1, 1, {})
    done = ask(engine, FOREIGN)
    assert (done.usage.outcome, done.usage.reason) == ("hit", "pinned_prefix")
    assert done.token_ids == ask(engine, FOREIGN, reuse="off").token_ids
    extra = [search(QUESTIONS[0])[0], *engine.pinned(engine.route(FOREIGN))[:1]]
    found = [type(extra[0]).of("A passage that no past question wanted."), *extra]
    shown = engine.compose(engine.route(FOREIGN), found)
    assert {p.text for p in found} <= {p.text for p in shown}
    assert shown[-1].text == found[0].text


def test_its_kv_is_in_memory_as_soon_as_the_store_is_open(cag, open_engine) -> None:
    engine = cag()
    engine.warm(lambda q: ask(engine, q))
    engine.close()
    assert open_engine().store.blocks.memory.num_bytes == 0
    again = open_engine(preset="cag")
    assert again.store.blocks.memory.num_bytes > 0
    done = ask(again, FOREIGN)
    assert (done.usage.outcome, done.usage.tier) == ("hit", "memory")


def test_opening_without_its_kv_or_without_a_plan_costs_nothing(cag, open_engine) -> None:
    assert open_engine(preset="cag").router.plan is None
    engine = cag()
    engine.close()
    again = open_engine(preset="cag")
    assert again.store.blocks.memory.num_bytes == 0
    assert ask(again, FOREIGN).usage.reason in ("cluster_not_filled", "empty_store")


def test_a_grown_plan_is_replaced_by_the_one_context(open_engine) -> None:
    engine = open_engine(preset="cag", fit_after=len(QUESTIONS))
    for question in QUESTIONS:
        ask(engine, question)
        engine.flush()
    plan = engine.router.plan
    assert plan is not None and not plan.is_online
    assert len(plan.clusters) == 1
    assert engine.route(FOREIGN).is_admitted


def test_settings_of_a_build_win_over_the_presets(open_engine) -> None:
    engine = open_engine(preset="cag")
    engine.build(questions=QUESTIONS, retriever=search, max_pins=1, num_clusters=2)
    assert len(engine.router.plan.clusters) == 2
    assert all(len(c.pins) == 1 for c in engine.router.plan.clusters)
