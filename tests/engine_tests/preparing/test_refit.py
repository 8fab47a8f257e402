"""Refitting: the next version comes from the questions asked and those of the build."""

from collections.abc import Callable
from dataclasses import replace

import pytest

from centroidkv import Engine, Passage
from centroidkv.errors import ConfigError
from word_bank import PASSAGES, QUESTIONS, Built, ask, build_and_warm, search

ACCOUNT = Passage.of("An account is opened online in ten minutes with an identity card. " * 3)
NEW = ["open an account online", "how do I open an account online", "account online please"]


def ask_account(engine: Engine, question: str, **options: object):
    """Ask through a bank that has one passage more."""
    found = [ACCOUNT] if "account" in question else search(question)[:1]
    passages = engine.compose(engine.route(question), found)
    context = "\n\n".join(p.text for p in passages)
    prompt = f"Answer from the context.\n\n{context}\n\nQuestion: {question}"
    return engine.generate(prompt, max_tokens=12, **options)


def test_new_questions_get_a_cluster_and_hit_at_once(
    built: Built, open_engine: Callable[..., Engine]
) -> None:
    engine = open_engine(near_misses=99)
    for question in NEW * 2:
        assert ask_account(engine, question).usage.plan == built.second
    assert not engine.route(NEW[0]).is_admitted
    report = engine.refit(lambda q: ask_account(engine, q), num_clusters=4)
    assert (report.version, report.is_new, report.is_in_force) == (3, True, True)
    assert (report.num_questions, report.num_new_questions) == (len(QUESTIONS) + len(NEW), 3)
    assert report.num_clusters == report.warm.num_clusters == 4
    assert report.warm.filled + report.warm.already_filled == 4 and report.warm.problems == {}
    assert report.before.admitted < 0.5 and report.after.admitted > 0.9
    assert report.before.covered == 0 and report.after.covered > 0.9
    done = ask_account(engine, "please open an account online")
    assert (done.usage.outcome, done.usage.reason) == ("hit", "pinned_prefix")
    assert done.usage.plan == report.plan_id
    again = ask_account(engine, "please open an account online", reuse="off")
    assert done.token_ids == again.token_ids
    assert engine.route(QUESTIONS[0]).is_admitted, "the questions of the build are not lost"
    assert engine.check().is_clean


def test_kv_of_prefixes_that_stay_is_found_and_not_computed_again(
    built: Built, open_engine: Callable[..., Engine]
) -> None:
    engine = open_engine(near_misses=99)
    blocks = engine.stats().num_blocks
    report = engine.refit(lambda q: ask(engine, q), num_clusters=3)
    assert report.is_new and report.warm.filled == report.warm.found == 3
    assert report.warm.stored_tokens == 0
    assert engine.stats().num_blocks == blocks
    assert engine.stats().num_filled_clusters == 3
    assert ask(engine, "please block my lost card").usage.outcome == "hit"


def test_the_old_version_serves_while_the_new_one_is_warmed(
    built: Built, open_engine: Callable[..., Engine]
) -> None:
    engine = open_engine(near_misses=99)
    for question in NEW:
        ask_account(engine, question)
    served = set()

    def chain(question: str):
        served.update(engine.router.route(q).plan for q in QUESTIONS)
        return ask_account(engine, question)

    report = engine.refit(chain, num_clusters=4)
    assert served == {built.second}
    assert {engine.route(q).plan for q in QUESTIONS} == {report.plan_id}


def test_the_settings_are_those_of_the_plan_in_force(built: Built, engine: Engine) -> None:
    ask_account(engine, NEW[0])
    before = engine.router.plan
    report = engine.refit()
    assert report.warm is None and report.num_clusters == 2
    after = engine.router.plan
    assert (after.source, before.source) == ("refit", "build")
    assert after.settings == before.settings
    assert engine.refit(max_pins=2).num_passages >= report.num_passages
    assert engine.router.plan.settings == {**before.settings, "max_pins": 2}


def test_the_same_questions_make_no_new_version(built: Built, engine: Engine) -> None:
    report = engine.refit(lambda q: ask(engine, q))
    assert not report.is_new and report.is_in_force and report.plan_id == built.second
    assert report.warm.already_filled == 2
    assert [v.version for v in engine.versions.kept()] == [1, 2]


def test_a_refit_with_a_share_is_tried_and_then_promoted(built: Built, engine: Engine) -> None:
    ask_account(engine, NEW[0])
    report = engine.refit(lambda q: ask_account(engine, q), num_clusters=3, share=0.5)
    assert not report.is_in_force and engine.router.plan.id == built.second
    asked = [f"{q} {i}" for q in QUESTIONS for i in range(3)]
    assert {engine.route(q).plan for q in asked} == {built.second, report.plan_id}
    with pytest.raises(ConfigError, match="version 3 is on trial; promote it or roll back first"):
        engine.refit()
    engine.versions.promote()
    assert {engine.route(q).plan for q in asked} == {report.plan_id}
    engine.versions.rollback()
    assert {engine.route(q).plan for q in asked} == {built.second}


def test_what_came_often_is_pinned_before_what_came_once(engine: Engine) -> None:
    texts = list(PASSAGES.values())

    def asked(question: str, first: int) -> None:
        passages = [Passage.of(texts[first]), Passage.of(texts[1 - first])]
        engine.compose(engine.route(question), passages)
        engine.generate(f"{texts[first]}\n\n{texts[1 - first]}\n\n{question}", max_tokens=1)

    for question in ("about cards one", "about cards two"):
        asked(question, 0)
    for _ in range(5):
        asked("about cards three", 1)
    engine.refit(num_clusters=1, max_pins=1)
    (cluster,) = engine.router.plan.clusters
    assert cluster.pins == (Passage.of(texts[1]).id,)


def test_pins_do_not_vote_for_themselves(built: Built, engine: Engine) -> None:
    """What is noted of a question is what its retriever found, in the retriever's order."""
    question = "please block my lost card"
    route = engine.route(question)
    pinned = engine.pinned(route)[0]
    found = [ACCOUNT, Passage.of(pinned.text)]
    passages = engine.compose(route, found)
    assert passages[0].text == pinned.text
    engine.generate("\n\n".join(p.text for p in passages) + question, max_tokens=1)
    engine.flush()
    noted = {a.seen.question: a.seen.passages for a in engine._learner.history.asked()}
    assert noted[question] == (ACCOUNT.id, pinned.id)


def test_a_retriever_is_asked_anew_for_every_question(built: Built, engine: Engine) -> None:
    asked: list[str] = []

    def retriever(question: str) -> list[Passage]:
        asked.append(question)
        return [ACCOUNT]

    report = engine.refit(retriever=retriever)
    assert sorted(asked) == sorted(QUESTIONS)
    assert [p.text for p in engine.router.plan.passages.values()] == [ACCOUNT.text]
    assert report.is_new


def test_old_questions_can_be_left_out(built: Built, engine: Engine) -> None:
    ask_account(engine, NEW[0])
    engine.flush()
    history = engine._learner.history
    history._db.execute("UPDATE seen SET last_seen_s = 1000 WHERE question = ?", (NEW[0],))
    assert engine.refit(since_days=1).num_new_questions == 0
    ask_account(engine, NEW[0])
    assert engine.refit(since_days=1).num_new_questions == 1
    with pytest.raises(ConfigError, match="since_days"):
        engine.refit(since_days=0)


def test_a_lost_history_leaves_what_the_plan_knows(
    built: Built, open_engine: Callable[..., Engine], tmp_path
) -> None:
    for name in ("history.sqlite", "history.sqlite-wal", "history.sqlite-shm"):
        (tmp_path / "store" / name).unlink(missing_ok=True)
    engine = open_engine(near_misses=99)
    ask_account(engine, NEW[0])
    members = {q for c in engine.router.plan.clusters for q in c.members}
    report = engine.refit(num_clusters=3)
    assert report.num_questions == len(members) + 1
    assert {engine.route(q).is_admitted for q in members} == {True}


def test_a_chain_that_breaks_off_leaves_the_old_version(built: Built, engine: Engine) -> None:
    ask_account(engine, NEW[0])

    async def chain(question: str):
        return ask_account(engine, question)

    with pytest.raises(ConfigError, match="awarm"):
        engine.refit(chain, num_clusters=3)
    assert engine.router.plan.id == built.second and engine.router.trial is None

    def stopped(question: str):
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        engine.refit(stopped, num_clusters=3)
    assert {v.version: v.state for v in engine.versions.kept()}[2] == "in force"
    report = engine.refit(lambda q: ask_account(engine, q), num_clusters=3)
    assert report.version == 3, "what was begun is taken up again"
    assert report.warm.problems == {}


def test_a_mistake_is_named(engine: Engine) -> None:
    with pytest.raises(ConfigError, match="no questions to refit from"):
        engine.refit()
    build_and_warm(engine)
    for options, message in [
        ({"clusters": 3}, "unknown setting clusters"),
        ({"share": 2}, "share must be"),
        ({"num_clusters": 0}, "num_clusters"),
        ({"retriever": 3}, "not a retriever"),
        ({"invoke": 3}, "cannot be warmed with"),
    ]:
        with pytest.raises(ConfigError, match=message):
            engine.refit(**options)
    assert [v.version for v in engine.versions.kept()] == [1]


def test_a_grown_plan_is_refitted_from_what_was_seen(engine: Engine) -> None:
    with pytest.raises(ConfigError, match="a plan in force beside it"):
        engine.refit(share=0.1)
    for question in QUESTIONS:
        ask(engine, question)
    engine.flush()
    assert engine.router.plan.is_online
    report = engine.refit(lambda q: ask(engine, q), num_clusters=3, max_pins=1)
    assert not engine.router.plan.is_online and report.num_clusters == 3
    assert report.warm.filled == 3 and report.warm.found > 0
    assert engine.versions.rollback() == 1 and engine.router.plan.is_online


def test_the_paper_preset_asks_its_representatives_after_the_switch(
    open_engine: Callable[..., Engine],
) -> None:
    engine = open_engine(preset="paper")
    engine.build(questions=QUESTIONS, retriever=search, num_clusters=3)
    engine.warm(lambda q: ask(engine, q))
    report = engine.refit(lambda q: ask(engine, q), num_clusters=2)
    assert report.warm.num_clusters == report.warm.filled == 2
    done = ask(engine, "please block my lost card")
    assert done.usage.outcome == "hit" and done.usage.plan == report.plan_id


def test_versions_that_differ_in_source_alone_are_the_same(built: Built, engine: Engine) -> None:
    plan = engine.router.plan
    assert plan.is_same_as(replace(plan, source="refit", version=9))
    assert not plan.is_same_as(replace(plan, settings={}))
