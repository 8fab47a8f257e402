"""A domain's byte budget: what warming and requests store for its clusters stays under it."""

from collections.abc import Callable

import pytest

from centroidkv import Engine
from centroidkv.routing.plan import Plan
from centroidkv.versions.domain_budgets import DomainBudgets
from word_bank import DOMAINS, QUESTIONS, ask, search


def build(engine: Engine, budgets: dict[str, int], clusters: int = 1) -> Plan:
    settings = {d: {"kv_budget_bytes": b, "num_clusters": clusters} for d, b in budgets.items()}
    engine.build(
        questions=QUESTIONS,
        domains=DOMAINS,
        retriever=search,
        domain_settings=settings,
        num_clusters=3,
        max_pins=1,
        pca_dim=8,
    )
    plan = engine.router.plan
    assert plan is not None
    return plan


def measured(engine: Engine, domain: str) -> int:
    """What the domain's clusters have, told from the manifest's rows one by one."""
    engine.flush()
    manifest, plan = engine.store.blocks.disk.manifest, engine.router.plan
    blocks = {
        row.id: row.num_bytes
        for cluster in plan.clusters
        if cluster.domain == domain
        for prefix in manifest.prefixes(plan.id, cluster.id)
        for row in manifest.chain(prefix.block)
    }
    return sum(blocks.values())


def test_without_a_budget_every_cluster_is_filled(engine: Engine) -> None:
    build(engine, {})
    report = engine.warm(lambda q: ask(engine, q))
    assert (report.filled, report.problems, report.domain_bytes) == (3, {}, {})


def test_clusters_that_do_not_fit_stay_unfilled_and_the_report_says_why(engine: Engine) -> None:
    build(engine, {"loans": 1000})
    report = engine.warm(lambda q: ask(engine, q))
    assert report.filled == 2
    reason = "domain 'loans' has no room under its kv_budget_bytes of 1,000"
    assert report.problems == {reason: 1}
    assert report.domain_bytes == {"loans": 0}
    assert ask(engine, "please block my lost card").usage.outcome == "hit"


@pytest.mark.parametrize("share", [0.4, 0.9, 1.6, 2.5])
def test_a_budget_is_obeyed_by_warming_and_by_requests(
    open_engine: Callable[..., Engine], tmp_path, share: float
) -> None:
    with open_engine(tmp_path / "free") as free:
        build(free, {"cards": 1 << 40}, clusters=3)
        one = free.warm(lambda q: ask(free, q)).domain_bytes["cards"]
    engine = open_engine(tmp_path / "tight")
    budget = int(one * share)
    plan = build(engine, {"cards": budget}, clusters=3)
    report = engine.warm(lambda q: ask(engine, q))
    for question in [*QUESTIONS[:3], "is my card lost or blocked", "my lost card, block it now"]:
        ask(engine, question)
    engine.flush()
    assert measured(engine, "cards") <= budget
    assert report.domain_bytes["cards"] == measured(engine, "cards")
    assert (share < 1) == bool(report.problems)
    assert engine.check().is_clean
    budgets = DomainBudgets(engine.store.blocks.disk.manifest, engine._learner.namespace)
    assert budgets.used_bytes(plan, "cards") == measured(engine, "cards")


def test_a_request_to_a_full_domain_is_answered_and_not_stored(engine: Engine) -> None:
    build(engine, {"loans": 0})
    engine.warm(lambda q: ask(engine, q))
    blocks = engine.stats().num_blocks
    for _ in range(2):
        done = ask(engine, "repay my personal loan early", reuse=None)
        assert done.token_ids == ask(engine, "repay my personal loan early", reuse="off").token_ids
    stats = engine.stats()
    assert stats.num_blocks == blocks and stats.counters["over_domain_budget"] >= 1
    assert measured(engine, "loans") == 0


def test_the_budget_lasts_over_a_restart(open_engine: Callable[..., Engine]) -> None:
    with open_engine() as first:
        build(first, {"loans": 0})
    second = open_engine()
    assert second.warm(lambda q: ask(second, q)).filled == 2


def test_what_clusters_share_is_counted_once(engine: Engine) -> None:
    plan = build(engine, {"cards": 1 << 40}, clusters=3)
    report = engine.warm(lambda q: ask(engine, q))
    assert len([c for c in plan.clusters if c.domain == "cards"]) == 3
    manifest = engine.store.blocks.disk.manifest
    ends = {
        p.block for p in manifest.prefixes(plan.id) if plan.clusters[p.cluster].domain == "cards"
    }
    assert len(ends) == 1, "the three pin the same passage"
    assert report.domain_bytes["cards"] == sum(r.num_bytes for r in manifest.chain(ends.pop()))
