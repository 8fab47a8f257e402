"""A request may name its domain; without one, the nearest of all clusters decides."""

from collections.abc import Callable

import pytest

from centroidkv import Engine
from centroidkv.errors import ConfigError
from word_bank import DOMAINS, QUESTIONS, ask, search


@pytest.fixture
def routed(engine: Engine) -> Engine:
    report = engine.build(
        questions=QUESTIONS,
        domains=DOMAINS,
        retriever=search,
        num_clusters=3,
        max_pins=1,
        pca_dim=8,
    )
    assert report.domains == {"cards": 1, "loans": 1, "transfers": 1}
    return engine


def test_a_given_domain_is_obeyed(routed: Engine) -> None:
    question = "please block my lost card"
    assert routed.route(question).settled_domain == "cards"
    given = routed.route(question, domain="loans")
    assert given.cluster is not None and given.cluster.domain == "loans"
    assert not given.is_admitted and given.settled_domain == "loans"
    same = routed.route(question, domain="cards")
    assert same.is_admitted and same.cluster == routed.route(question).cluster


def test_a_domain_that_the_plan_does_not_know_admits_nothing(routed: Engine) -> None:
    route = routed.route("please block my lost card", domain="crypto")
    assert (route.cluster, route.is_admitted) == (None, False)
    assert route.settled_domain == "crypto"


def test_a_domain_must_be_a_text(routed: Engine) -> None:
    with pytest.raises(ConfigError, match="domain must be a text, not 3"):
        routed.route("please block my lost card", domain=3)


def test_usage_names_the_domain(routed: Engine) -> None:
    assert ask(routed, "please block my lost card").usage.domain == "cards"
    assert ask(routed, "weather").usage.domain is None


def test_a_grown_cluster_belongs_to_the_domain_that_was_given(
    open_engine: Callable[..., Engine],
) -> None:
    with open_engine(near_misses=2) as engine:
        engine.build(questions=QUESTIONS, domains=DOMAINS, retriever=search, pca_dim=8)
        for question in ("wallet keys for bitcoin", "bitcoin wallet keys", "keys bitcoin wallet"):
            route = engine.route(question, domain="crypto")
            context = "\n\n".join(p.text for p in engine.compose(route, search(question)[:1]))
            engine.generate(f"{context}\n\nQuestion: {question}", max_tokens=2)
            engine.flush()
        assert engine.route("my bitcoin wallet keys", domain="crypto").is_admitted
    again = open_engine()
    assert again.route("my bitcoin wallet keys", domain="crypto").cluster is not None


def test_a_grown_cluster_without_a_domain_takes_that_of_the_nearest(
    open_engine: Callable[..., Engine],
) -> None:
    engine = open_engine(near_misses=2, online_radius=1.0)
    engine.build(
        questions=QUESTIONS, domains=DOMAINS, retriever=search, pca_dim=8, radius_quantile=0.1
    )
    before = len(engine.router.plan.clusters)
    for question in ("stolen purse and lost card abroad", "purse and card stolen abroad"):
        ask(engine, question)
        engine.flush()
    grown = engine.router.plan.clusters[before:]
    assert [c.domain for c in grown] == ["cards"]
