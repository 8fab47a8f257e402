"""Past questions become clusters that hold what a request will look for."""

from collections import Counter

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from centroidkv.errors import ConfigError
from centroidkv.plan_config import PlanConfig
from centroidkv.preparing.gathering import clean_questions
from centroidkv.routing.history import Seen
from centroidkv.routing.plan import Plan
from centroidkv.types import Passage
from centroidkv.versions.fitting import fit_plan
from small_parts import HashEmbedder

TOPICS = ["lost card app", "wire abroad cost", "loan repay early", "open account online"]
PASSAGES = [Passage.of(f"passage {i} " + "word " * i) for i in range(10)]
KNOWN = {p.id: p for p in PASSAGES}


def asked(count: int = 40, *, seed: int = 0) -> list[Seen]:
    """Questions of four topics; each topic retrieves a few passages of its own, and passage 0."""
    random = np.random.default_rng(seed)
    questions = [
        f"{TOPICS[i % 4]} {' '.join(random.choice(list('abcdef'), 2))} {i}" for i in range(count)
    ]
    vectors = HashEmbedder().embed(questions)
    found = []
    for i, (question, vector) in enumerate(zip(questions, vectors, strict=True)):
        own = [PASSAGES[1 + 2 * (i % 4)].id, PASSAGES[2 + 2 * (i % 4)].id, PASSAGES[0].id]
        found.append(Seen(question, vector, tuple(random.permutation(own))))
    return found


def fit(seen: list[Seen], *, domains: dict[str, str] | None = None, **options: object) -> Plan:
    config = PlanConfig.of({"num_clusters": 4, "pca_dim": 8, **options})
    return fit_plan(
        seen,
        KNOWN,
        config,
        namespace="f" * 64,
        count_tokens=lambda text: len(text.split()),
        domains=domains,
    )


# cleaning


def test_questions_are_kept_once_in_their_order() -> None:
    assert list(clean_questions(["b ", "a", " b", "", "  ", "a\n x"])) == ["b", "a", "a x"]


def test_a_repeated_question_keeps_its_first_domain() -> None:
    cleaned = clean_questions(["a", "b", "a"], ["x", "", "y"])
    assert cleaned == {"a": "x", "b": ""}
    assert clean_questions(iter(["a"]), iter(["x"])) == {"a": "x"}


def test_text_that_is_not_unicode_is_made_so() -> None:
    (question,) = clean_questions(["lone \ud800"])
    assert question == "lone ?"


@pytest.mark.parametrize(
    ("questions", "domains", "message"),
    [
        ([], None, "no questions"),
        (["", " \n"], None, "no questions"),
        (["a"], [], "1 questions came with 0 domains"),
        (["a", 3], None, "found int: 3"),
        ([None], None, "NoneType"),
    ],
)
def test_what_is_wrong_with_questions_is_named(questions, domains, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        clean_questions(questions, domains)


# fitting


def test_the_topics_are_found() -> None:
    seen = asked()
    plan = fit(seen)
    assert (plan.namespace, plan.version, plan.is_online) == ("f" * 64, 0, False)
    assert sorted(c.num_members for c in plan.clusters) == [10, 10, 10, 10]
    assert {c.representative.rsplit(" ", 3)[0] for c in plan.clusters} == set(TOPICS)


@given(st.integers(1, 30), st.integers(1, 12), st.integers(0, 50))
@settings(max_examples=25, deadline=None)
def test_every_question_is_a_member_of_its_nearest_cluster(count, clusters, seed) -> None:
    seen = asked(count, seed=seed)
    plan = fit(seen, num_clusters=clusters)
    vectors = np.stack([s.embedding for s in seen])
    reduced = plan.projection.transform(vectors)
    far = np.linalg.norm(reduced[:, None] - plan.reduced()[None], axis=2)
    members = Counter(far.argmin(1).tolist())
    assert [c.id for c in plan.clusters] == list(range(len(plan.clusters)))
    assert sum(c.num_members for c in plan.clusters) == count
    assert [members[c.id] for c in plan.clusters] == [c.num_members for c in plan.clusters]
    for cluster in plan.clusters:
        own = [i for i in range(count) if far[i].argmin() == cluster.id]
        spread = np.linalg.norm(vectors - cluster.centroid, axis=1)
        nearest = spread[own].min()
        at = next(i for i in own if seen[i].question == cluster.representative)
        assert spread[at] == pytest.approx(nearest, abs=1e-6)
        assert cluster.members[0] == cluster.representative
        assert set(cluster.members) <= {seen[i].question for i in own}
        assert len(cluster.members) == min(2, len(own))
        assert np.isfinite(cluster.radius) and cluster.radius >= 0


def test_most_members_lie_within_their_radius() -> None:
    seen = asked(120)
    plan = fit(seen, radius_quantile=0.9)
    admitted = [
        min(float(np.linalg.norm(s.embedding - c.centroid)) - c.radius for c in plan.clusters) <= 0
        for s in seen
    ]
    assert 0.85 <= np.mean(admitted) <= 1


def test_pins_are_what_the_members_retrieved_most() -> None:
    plan = fit(asked(), max_pins=3)
    for cluster in plan.clusters:
        topic = TOPICS.index(cluster.representative.rsplit(" ", 3)[0])
        own = {PASSAGES[0].id, PASSAGES[1 + 2 * topic].id, PASSAGES[2 + 2 * topic].id}
        assert set(cluster.pins) == own
        assert [p.id for p in plan.pinned(cluster)] == list(cluster.pins)


@pytest.mark.parametrize(("max_pins", "max_pin_tokens"), [(1, 100), (2, 100), (8, 8), (8, 1)])
def test_pins_fit_into_their_budgets(max_pins: int, max_pin_tokens: int) -> None:
    plan = fit(asked(), max_pins=max_pins, max_pin_tokens=max_pin_tokens)
    for cluster in plan.clusters:
        assert len(cluster.pins) <= max_pins
        assert sum(len(KNOWN[p].text.split()) for p in cluster.pins) <= max_pin_tokens


def test_pins_that_clusters_share_stand_in_the_same_order() -> None:
    plan = fit(asked(), max_pins=3)
    assert {c.pins[0] for c in plan.clusters} == {PASSAGES[0].id}, "wanted by every topic"


def test_a_plan_holds_the_pinned_passages_and_no_others() -> None:
    plan = fit(asked(), max_pins=1)
    assert set(plan.passages) == {p for c in plan.clusters for p in c.pins}
    assert all(plan.passages[p] == KNOWN[p] for p in plan.passages)


def test_without_domains_there_is_one_without_a_name() -> None:
    assert {c.domain for c in fit(asked()).clusters} == {""}


def test_fitting_again_gives_the_same_plan() -> None:
    assert fit(asked()).is_same_as(fit(asked()))
    assert not fit(asked()).is_same_as(fit(asked(), max_pins=1))


def test_without_a_number_there_is_a_cluster_for_about_ten_questions() -> None:
    assert 8 <= len(fit(asked(120), num_clusters=None).clusters) <= 12
    assert len(fit(asked(3), num_clusters=None).clusters) == 1


def test_a_single_question_makes_a_plan() -> None:
    (cluster,) = fit(asked(1)).clusters
    assert cluster.num_members == 1 and len(cluster.members) == 1


def test_questions_that_are_embedded_alike_make_a_plan() -> None:
    vectors = HashEmbedder().embed(["is it free", "is it free?", "IS IT FREE"])
    seen = [Seen(f"q{i}", v, (PASSAGES[0].id,)) for i, v in enumerate(vectors)]
    plan = fit(seen)
    assert sum(c.num_members for c in plan.clusters) == 3


def test_questions_that_retrieve_nothing_make_clusters_without_pins() -> None:
    seen = [Seen(s.question, s.embedding, ()) for s in asked(8)]
    plan = fit(seen, num_clusters=2)
    assert all(c.pins == () for c in plan.clusters) and plan.passages == {}
