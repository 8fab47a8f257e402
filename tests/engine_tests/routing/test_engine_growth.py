"""How far the clusters of an engine grow by themselves."""

from collections.abc import Callable

from centroidkv import Engine
from word_bank import ask, build_and_warm

NEW = ("wallet keys for bitcoin", "gardens of babylon", "seven samurai film", "recipes with leek")


def test_clusters_grow_to_a_number_and_a_question_beyond_is_answered_and_counted(
    open_engine: Callable[..., Engine],
) -> None:
    engine = open_engine(near_misses=1, max_clusters=5, online_radius=0.1)
    build_and_warm(engine)
    assert engine.router.plan is not None
    before = len(engine.router.plan.clusters)
    assert before == 3
    for question in NEW:
        done = ask(engine, question)
        assert done.token_ids == ask(engine, question, reuse="off").token_ids
        engine.flush()
    assert len(engine.router.plan.clusters) == 5
    assert engine.stats().counters["clusters_full"] == 2


def test_an_online_store_stops_at_the_same_number(open_engine: Callable[..., Engine]) -> None:
    engine = open_engine(max_clusters=2, online_radius=0.1)
    for question in NEW:
        ask(engine, question)
        engine.flush()
    assert engine.router.plan is not None and len(engine.router.plan.clusters) == 2
    assert engine.stats().counters["clusters_full"] == 2
    assert engine.route(NEW[0]).is_admitted and not engine.route(NEW[-1]).is_admitted
