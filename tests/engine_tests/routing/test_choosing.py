"""Pins chosen by what was found: less is computed, the prompt is shorter, the answer the same."""

from collections.abc import Callable, Iterator

import numpy as np
import pytest

from centroidkv import Completion, Engine, Passage
from centroidkv.routing.plan import Plan
from centroidkv.routing.projection import identity
from centroidkv.types import Cluster
from small_parts import HashEmbedder

PASSAGES = {
    name: Passage.of(f"{name}: {text} " * 3)
    for name, text in {
        "card": "a lost card is blocked in the app at once",
        "fee": "a new card costs five dollars and comes by mail",
        "wire": "a wire to another country takes two business days",
        "loan": "a personal loan can be repaid early for a charge",
        "hours": "the branch is open from nine to five on weekdays",
    }.items()
}
PINS = {
    "how do I block a lost card": ["card", "fee", "hours"],
    "what does a wire to another country cost": ["fee", "wire", "hours"],
    "can I repay a personal loan early": ["loan", "hours"],
}
ASKED = "please block a lost card how do I"


def plan(namespace: str) -> Plan:
    vectors = HashEmbedder().embed(list(PINS))
    clusters = [
        Cluster(i, vectors[i], q, (q, f"{q}, please"), _ids(pins), 0.9, 2)
        for i, (q, pins) in enumerate(PINS.items())
    ]
    return Plan(namespace, 0, identity(), tuple(clusters), {p.id: p for p in PASSAGES.values()})


def _ids(names: list[str]) -> tuple[str, ...]:
    return tuple(PASSAGES[n].id for n in names)


def ask(engine: Engine, question: str, found: list[str], **options: object) -> Completion:
    passages = engine.compose(engine.route(question), [PASSAGES[n] for n in found])
    context = "\n\n".join(p.text for p in passages)
    prompt = f"Answer from the context.\n\n{context}\n\nQuestion: {question}"
    return engine.generate(prompt, max_tokens=12, **options)


def warmed(engine: Engine) -> Engine:
    assert engine.versions.put_in_force(plan(engine.versions.namespace))
    report = engine.warm(lambda q: ask(engine, q, []))
    assert (report.filled, report.problems) == (3, {})
    return engine


@pytest.fixture
def warm(engine: Engine) -> Iterator[Engine]:
    yield warmed(engine)


def shown(engine: Engine, found: list[str], question: str = ASKED) -> list[str]:
    composed = engine.compose(engine.route(question), [PASSAGES[n] for n in found])
    return [p.text.partition(":")[0] for p in composed]


def test_the_nearest_cluster_is_kept_where_it_serves_as_well(warm: Engine) -> None:
    assert shown(warm, ["card", "fee"]) == ["card", "fee"]
    assert ask(warm, ASKED, ["card", "fee"]).usage.cluster == 0


def test_another_cluster_lends_its_pins_where_they_hold_more_of_what_was_found(
    warm: Engine,
) -> None:
    assert shown(warm, ["wire", "fee"]) == ["fee", "wire"]
    done = ask(warm, ASKED, ["wire", "fee"])
    assert (done.usage.cluster, done.usage.outcome) == (1, "hit")
    wire = warm.router.plan.clusters[1].centroid
    far = float(np.linalg.norm(warm.route(ASKED).embedding - wire))
    assert done.usage.distance == pytest.approx(far)
    assert done.usage.pinned_passages == 2


@pytest.mark.parametrize(
    "found", [["card"], ["fee", "card"], ["loan", "card"], ["hours", "wire"], ["loan"]]
)
def test_trimmed_prompts_hit_and_answer_as_without_reuse(warm: Engine, found: list[str]) -> None:
    done = ask(warm, ASKED, found)
    cold = ask(warm, ASKED, found, reuse="off")
    assert done.token_ids == cold.token_ids
    assert done.usage.reused_tokens > 100
    assert done.usage.outcome == (
        "hit" if set(found) <= set(_pins_shown(warm, found)) else "partial"
    )
    warm.flush()
    assert warm.stats().counters[f"outcome_{done.usage.outcome}"] == 1
    assert warm.check().is_clean


def _pins_shown(engine: Engine, found: list[str]) -> list[str]:
    pins = engine.pinned(engine.route(ASKED), [PASSAGES[n] for n in found])
    return [p.text.partition(":")[0] for p in pins]


def test_a_trimmed_prompt_reuses_what_the_whole_one_does(
    open_engine: Callable[..., Engine],
) -> None:
    """Fewer pins in front, the same passages computed: none of those that were found."""
    for found in (["card"], ["card", "fee"]):
        whole = ask(warmed_or_open(open_engine, pins_by="nearest"), ASKED, found).usage
        short = ask(warmed_or_open(open_engine), ASKED, found).usage
        assert whole.outcome == short.outcome == "hit"
        assert short.prompt_tokens < whole.prompt_tokens
        # Of a whole prompt's warm prefix, the words before the question are a part, too.
        assert short.computed_tokens <= whole.computed_tokens + len("\n\nQuestion: ")


def warmed_or_open(open_engine: Callable[..., Engine], **options: object) -> Engine:
    engine = open_engine(**options)
    return engine if engine.router.plan is not None else warmed(engine)


@pytest.mark.parametrize("found", [[], ["card"], ["wire", "fee"], ["hours", "loan", "card"]])
def test_nothing_found_is_lost_and_pinned_agrees_with_compose(
    warm: Engine, found: list[str]
) -> None:
    route, passages = warm.route(ASKED), [PASSAGES[n] for n in found]
    composed = warm.compose(route, passages)
    assert {p.id for p in passages} <= {p.id for p in composed}
    pins = warm.pinned(route, passages)
    assert composed[: len(pins)] == pins
    order = [p for p in passages if p not in pins]
    assert composed[len(pins) :] == order


@pytest.mark.parametrize(
    ("found", "expected"),
    [
        (["fee", "card"], ["card", "fee"]),  # the best one stands last already
        (["card", "fee"], ["card", "fee", "card"]),
        (["wire", "card"], ["fee", "wire", "card", "wire"]),
        ([], ["card", "fee", "hours"]),
    ],
)
def test_the_best_passage_stands_next_to_the_question_where_that_is_asked_for(
    open_engine: Callable[..., Engine], found: list[str], expected: list[str]
) -> None:
    engine = warmed_or_open(open_engine, repeat_best=True)
    assert shown(engine, found) == expected
    done, cold = ask(engine, ASKED, found), ask(engine, ASKED, found, reuse="off")
    assert done.token_ids == cold.token_ids
    assert done.usage.reused_tokens > 100


def test_where_no_cluster_serves_the_nearest_keeps_its_pins(warm: Engine) -> None:
    stranger = Passage.of("news of the day")
    composed = warm.compose(warm.route(ASKED), [stranger])
    assert [p.id for p in composed] == [*_ids(PINS["how do I block a lost card"]), stranger.id]


def test_a_question_that_no_cluster_admits_gets_no_pins(warm: Engine) -> None:
    route = warm.route("tell me a joke about dogs")
    assert not route.is_admitted
    found = [PASSAGES["fee"], PASSAGES["card"]]
    assert warm.compose(route, found) == found and warm.pinned(route, found) == []


def test_a_trimmed_prompt_leaves_the_clusters_pointer_alone(warm: Engine) -> None:
    manifest = warm.store.blocks.disk.manifest
    before = [manifest.prefixes(warm.router.plan.id, c) for c in range(3)]
    for found in (["card"], ["card", "loan"], ["fee"]):
        ask(warm, ASKED, found)
    warm.flush()
    assert [manifest.prefixes(warm.router.plan.id, c) for c in range(3)] == before


def test_a_trimmed_prompt_fills_a_cluster_that_has_nothing(engine: Engine) -> None:
    assert engine.versions.put_in_force(plan(engine.versions.namespace))
    ask(engine, ASKED, ["card"])
    engine.flush()
    manifest, plan_id = engine.store.blocks.disk.manifest, engine.router.plan.id
    (short,) = manifest.prefixes(plan_id, 0)
    ask(engine, ASKED, ["card", "hours"])
    engine.flush()
    (longer,) = manifest.prefixes(plan_id, 0)
    assert longer.num_tokens > short.num_tokens > 0
    report = engine.warm(lambda q: ask(engine, q, []))
    assert report.filled + report.already_filled == 3


def test_a_cluster_that_grows_is_chosen_from_then_on(warm: Engine) -> None:
    shown(warm, ["card"])
    extra = Passage.of("news: the bank has a new app " * 3)
    grown = Cluster(3, HashEmbedder().embed(["news"])[0], "news", ("news",), (extra.id,), 0.9, 1)
    bigger = warm.router.plan.grown(grown, {extra.id: extra})
    warm.router.extend(bigger, grown)
    assert warm.compose(warm.route(ASKED), [extra]) == [extra]
