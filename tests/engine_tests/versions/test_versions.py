"""Plan versions: one in force, one on trial, the way forward and the way back."""

import time
from collections.abc import Callable
from pathlib import Path

import pytest

from centroidkv import Engine
from centroidkv.errors import ConfigError, StoreError
from centroidkv.routing.share import is_in_share
from centroidkv.store import Store
from centroidkv.versions.files import VersionFiles
from centroidkv.versions.in_force import Versions
from centroidkv.versions.listing import plan_namespace_of
from word_bank import QUESTIONS, Built, ask, build_and_warm, search

NEW = ["please block my lost card", "does a wire to another country cost much", "repay a loan"]


def states(engine: Engine) -> dict[int, str]:
    return {v.version: v.state for v in engine.versions.kept()}


def test_usage_names_the_version_that_served(engine: Engine) -> None:
    build_and_warm(engine)
    assert ask(engine, NEW[0]).usage.plan == engine.router.plan.id
    assert engine.generate("no retriever told of this", max_tokens=2).usage.plan is None


def test_an_earlier_version_serves_again_and_its_kv_is_still_there(
    built: Built, engine: Engine
) -> None:
    first, second = built
    assert states(engine) == {1: "previous", 2: "in force"}
    engine.versions.use(1)
    assert states(engine) == {1: "in force", 2: "previous"}
    for question in NEW:
        done = ask(engine, question)
        assert done.usage.plan == first
        assert done.token_ids == ask(engine, question, reuse="off").token_ids
    assert ask(engine, NEW[0]).usage.outcome == "hit"
    assert engine.versions.rollback() == 2
    assert ask(engine, NEW[0]).usage.plan == second
    assert engine.versions.rollback() == 1, "a rollback can be rolled back"
    assert engine.check().is_clean


def test_what_is_in_force_survives_closing(
    built: Built, open_engine: Callable[..., Engine]
) -> None:
    with open_engine() as engine:
        engine.versions.use(1)
    with open_engine() as engine:
        assert engine.router.plan.id == engine.stats().plan_id == built.first
        assert engine.build(
            questions=QUESTIONS, retriever=search, num_clusters=4, max_pins=1, pca_dim=8
        ).plan_id.endswith("000003")
        assert states(engine) == {1: "previous", 2: "kept", 3: "in force"}


def test_a_trial_serves_its_share_and_always_the_same_questions(
    built: Built, engine: Engine
) -> None:
    first, second = built
    assert engine.versions.trial(1, share=0.4) == 1
    assert states(engine) == {1: "trial", 2: "in force"}
    questions = [f"lost card number {i}" for i in range(60)]
    served = [engine.route(q).plan for q in questions]
    assert served == [engine.route(q).plan for q in questions]
    expected = [first if is_in_share(q, 0.4, salt=first) else second for q in questions]
    assert served == expected and {first, second} == set(served)


def test_both_versions_answer_as_without_reuse_and_have_their_own_figures(
    built: Built, engine: Engine
) -> None:
    first, second = built
    engine.versions.trial(1, share=0.5)
    asked = [f"{q} {i}" for q in NEW for i in range(5)]
    served: dict[str, int] = {first: 0, second: 0}
    for question in asked:
        done = ask(engine, question)
        assert done.token_ids == ask(engine, question, reuse="off").token_ids
        served[done.usage.plan] += 1
    assert min(served.values()) > 0
    engine.flush()
    rows = {v.plan_id: v for v in engine.versions.kept()}
    for plan, count in served.items():
        (figures,) = rows[plan].figures
        assert figures.requests == count, "requests with reuse off do not count"
        assert figures.hits + figures.partials + figures.misses == count
        assert 0 < figures.reused_tokens < figures.prompt_tokens
        assert figures.ttft_p50_s > 0 and figures.ttft_mean_s > 0
    assert (rows[first].share, rows[second].share) == (0.5, 0.5)
    assert sum(f.requests for f in engine.stats().figures) == len(asked)
    assert engine.check().is_clean


def test_a_trial_goes_on_after_opening_and_is_promoted(
    built: Built, open_engine: Callable[..., Engine]
) -> None:
    with open_engine() as engine:
        engine.versions.trial(1, share=0.5)
        before = {q: engine.route(q).plan for q in QUESTIONS}
    with open_engine() as engine:
        assert {q: engine.route(q).plan for q in QUESTIONS} == before
        assert engine.versions.promote() == 1
        assert {engine.route(q).plan for q in QUESTIONS} == {built.first}
        assert states(engine) == {1: "in force", 2: "previous"}
        assert engine.versions.rollback() == 2
        assert {engine.route(q).plan for q in QUESTIONS} == {built.second}


def test_a_trial_that_is_rolled_back_leaves_the_version_in_force(
    built: Built, engine: Engine
) -> None:
    second = built.second
    engine.versions.trial(1, share=0.5)
    assert engine.versions.rollback() == 2
    assert states(engine) == {1: "previous", 2: "in force"}
    assert {engine.route(q).plan for q in QUESTIONS} == {second}


def test_a_question_under_way_keeps_its_version_while_another_takes_over(
    built: Built, engine: Engine
) -> None:
    first = built.first
    engine.versions.use(1)
    route = engine.route(NEW[0])
    engine.versions.use(2)
    assert route.plan == first
    passages = engine.compose(route, search(NEW[0])[:1])
    assert passages[0].text == engine.pinned(route)[0].text
    done = engine.generate(
        f"Answer from the context.\n\n{passages[0].text}\n\nQuestion: {NEW[0]}", max_tokens=4
    )
    assert done.usage.outcome == "hit" and done.usage.plan == first


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda v: v.use(7), "no plan version 7; kept are: 1, 2"),
        (lambda v: v.trial(7), "no plan version 7"),
        (lambda v: v.trial(2), "in force already"),
        (lambda v: v.trial(), "in force already"),
        (lambda v: v.trial(1, share=0), "share must be"),
        (lambda v: v.trial(1, share=1), "share must be"),
        (lambda v: v.trial(1, share=float("nan")), "share must be"),
        (lambda v: v.trial(1, share="0.1"), "share must be"),
        (lambda v: v.promote(), "no plan version is on trial"),
    ],
)
def test_a_mistake_is_named_and_changes_nothing(
    built: Built, engine: Engine, change, message: str
) -> None:
    second = built.second
    with pytest.raises(ConfigError, match=message):
        change(engine.versions)
    assert engine.router.plan.id == second and engine.router.trial is None
    assert states(engine) == {1: "previous", 2: "in force"}


def test_without_a_plan_or_a_way_back_a_switch_says_so(engine: Engine) -> None:
    for change in (engine.versions.promote, engine.versions.rollback, engine.versions.trial):
        with pytest.raises(ConfigError, match="build one first"):
            change()
    build_and_warm(engine)
    with pytest.raises(ConfigError, match="no earlier plan version"):
        engine.versions.rollback()


def test_a_damaged_version_is_not_put_in_force(built: Built, engine: Engine) -> None:
    second = built.second
    path = engine.store.plans.path(engine.versions.namespace, 1)
    path.write_bytes(path.read_bytes()[:-9])
    with pytest.raises(ConfigError, match="version 1 cannot be used"):
        engine.versions.use(1)
    assert engine.router.plan.id == second
    assert states(engine) == {1: "damaged", 2: "in force"}


@pytest.mark.parametrize("garbage", [b"", b"garbage\n{}"])
def test_a_damaged_pointer_costs_the_choice_and_nothing_else(
    built: Built, open_engine: Callable[..., Engine], garbage: bytes
) -> None:
    with open_engine() as engine:
        engine.versions.use(1)
        path = engine.store.plans.pointer_path(engine.versions.namespace)
    path.write_bytes(garbage)
    with open_engine() as engine:
        assert engine.router.plan.id == built.second, "the newest readable version"
        assert ask(engine, NEW[0]).usage.reused_tokens > 0
        report = engine.check(repair=True)
        assert any(path.name in p for p in report.problems)
        assert engine.stats().counters["damaged_plans"] == 1
        engine.versions.use(1)
        assert engine.check().is_clean
    with open_engine() as engine:
        assert states(engine) == {1: "in force", 2: "previous"}


def test_only_the_last_versions_and_those_that_serve_are_kept(
    built: Built,
    open_engine: Callable[..., Engine],
) -> None:
    engine = open_engine(keep_versions=2)
    engine.versions.trial(1, share=0.5)
    for number in (4, 5):
        engine.build(
            questions=QUESTIONS, retriever=search, num_clusters=number, max_pins=1, pca_dim=8
        )
    assert list(states(engine)) == [3, 4]
    engine.build(questions=QUESTIONS, retriever=search, num_clusters=6, max_pins=1, pca_dim=8)
    assert list(states(engine)) == [4, 5]
    manifest = engine.store.blocks.disk.manifest
    namespace = engine.versions.namespace[-16:]
    assert manifest.prefixes(f"{namespace}-000001") == []
    assert engine.stats().num_blocks > 0, "KV leaves by the disk budget alone"
    from centroidkv.routing.embedded_chroma import EmbeddedChroma  # the collections, as they are

    assert isinstance(engine.store.centroids._chroma, EmbeddedChroma)
    names = {c.name for c in engine.store.centroids._chroma._client.list_collections()}
    assert names == {f"centroids-{namespace}-{n:06d}" for n in (4, 5)}
    assert engine.check().is_clean


def test_a_number_is_given_out_once(
    built: Built, open_engine: Callable[..., Engine], tmp_path: Path
) -> None:
    with open_engine() as engine:
        engine.versions.use(1)
        engine.store.plans.path(engine.versions.namespace, 2).unlink()
        engine.build(questions=QUESTIONS, retriever=search, num_clusters=5, pca_dim=8)
        assert states(engine) == {1: "previous", 3: "in force"}


# several processes on one store


def test_a_process_that_has_the_store_open_follows_a_switch(built: Built, engine: Engine) -> None:
    first, second = built
    store = Store.open(engine.store.path, create=False)
    outside = Versions(store, plan_namespace_of(store))
    outside.use(1)
    time.sleep(1.1)
    assert engine.route(NEW[0]).plan == second, "it looks behind the answer, not before it"
    engine.flush()
    assert engine.route(NEW[0]).plan == first
    outside.trial(2, share=0.5)
    engine.versions.follow()
    assert {engine.route(f"{q} {i}").plan for q in QUESTIONS for i in range(4)} == {first, second}
    outside.promote()
    engine.versions.follow()
    assert {engine.route(q).plan for q in QUESTIONS} == {second}
    assert ask(engine, NEW[0]).usage.reused_tokens > 0
    assert engine.router.num_index_failures == 0, "one thread opens Chroma, another closes it"
    store.close()


def test_two_engines_give_out_different_numbers(open_engine: Callable[..., Engine]) -> None:
    one, two = open_engine(), open_engine()
    one.build(questions=QUESTIONS, retriever=search, num_clusters=3, pca_dim=8)
    two.build(questions=QUESTIONS, retriever=search, num_clusters=2, pca_dim=8)
    one.build(questions=QUESTIONS, retriever=search, num_clusters=4, pca_dim=8)
    assert states(one) == states(two) == {1: "kept", 2: "previous", 3: "in force"}
    assert one.router.plan.id != two.router.plan.id
    two.versions.follow()
    assert one.router.plan.id == two.router.plan.id


def test_clusters_that_two_engines_grow_are_all_kept(open_engine: Callable[..., Engine]) -> None:
    one, two = open_engine(near_misses=1), open_engine(near_misses=1)
    grown = [
        (one, "how do I block a lost card"),
        (two, "what does a wire to another country cost"),
        (one, "can I repay a personal loan early"),
    ]
    for engine, question in grown:
        ask(engine, question)
        engine.flush()
    two.versions.follow()
    assert len(one.router.plan.clusters) == len(two.router.plan.clusters) == 3
    for engine in (one, two):
        assert len({engine.route(q).cluster.id for _, q in grown}) == 3


def test_a_lock_that_another_process_holds_is_waited_for_and_named(
    built: Built, engine: Engine, monkeypatch
) -> None:
    store = Store.open(engine.store.path, create=False)
    other = VersionFiles(store, engine.versions.namespace)
    monkeypatch.setattr("centroidkv.versions.files.LOCK_S", 0.2)
    with other.writing(), pytest.raises(StoreError, match="another process is writing"):
        engine.versions.use(1)
    engine.versions.use(1)
    assert states(engine)[1] == "in force"
    store.close()


def test_a_read_only_store_changes_no_version(
    built: Built, open_engine: Callable[..., Engine]
) -> None:
    reader = open_engine(read_only=True)
    assert [v.state for v in reader.versions.kept()] == ["previous", "in force"]
    for change in (lambda: reader.versions.use(1), lambda: reader.refit()):
        with pytest.raises(StoreError, match="read-only"):
            change()


def test_tenants_have_versions_of_their_own(built: Built, engine: Engine) -> None:
    other = engine.for_tenant("other")
    assert other.versions.kept() == []
    build_and_warm(other)
    engine.versions.use(1)
    assert states(engine) == {1: "in force", 2: "previous"} and states(other) == {1: "in force"}
    with pytest.raises(ConfigError, match="2 embedders or tenants"):
        plan_namespace_of(engine.store)
