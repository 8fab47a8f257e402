"""A changed passage changes the clusters that pinned it, and nothing else."""

from collections.abc import Callable
from dataclasses import replace

import pytest

from centroidkv import Engine, Passage
from centroidkv.errors import ConfigError
from centroidkv.preparing.refreshing import successors_of
from word_bank import PASSAGES, QUESTIONS

CARD, WIRE, LOAN = (Passage.of(text, {"id": name}) for name, text in PASSAGES.items())
NEW_CARD = Passage.of("A lost card is blocked by a call, and a new card costs ten dollars. " * 3,
                      {"id": "card"})  # fmt: skip
ASKED = {CARD.id: "please block my lost card", WIRE.id: "cost of a wire to another country please",
         LOAN.id: "repay my personal loan early please"}  # fmt: skip


class Bank:
    """A knowledge base that changes, and a chain over it."""

    def __init__(self) -> None:
        self.passages = [CARD, WIRE, LOAN]
        self.invoked: list[str] = []

    def search(self, question: str) -> list[Passage]:
        words = set(question.lower().split())
        return sorted(
            self.passages, key=lambda p: (-len(words & set(p.text.lower().split())), p.text)
        )

    def ask(self, engine: Engine, question: str, **options: object):
        self.invoked.append(question)
        passages = engine.compose(engine.route(question), self.search(question)[:1])
        context = "\n\n".join(p.text for p in passages)
        prompt = f"Answer from the context.\n\n{context}\n\nQuestion: {question}"
        return engine.generate(prompt, max_tokens=12, **options)

    def build(self, engine: Engine) -> None:
        engine.build(
            questions=QUESTIONS, retriever=self.search, num_clusters=3, max_pins=1, pca_dim=8
        )
        assert engine.warm(lambda q: self.ask(engine, q)).filled == 3
        self.invoked.clear()


@pytest.fixture
def bank(engine: Engine) -> Bank:
    bank = Bank()
    bank.build(engine)
    return bank


def cluster_of(engine: Engine, passage: Passage) -> int:
    (found,) = [c.id for c in engine.router.plan.clusters if passage.id in c.pins]
    return found


def test_only_the_cluster_that_pinned_a_changed_passage_is_made_anew(
    engine: Engine, bank: Bank
) -> None:
    old = engine.router.plan
    changed = cluster_of(engine, CARD)
    manifest = engine.store.blocks.disk.manifest
    rows = {r.cluster: replace(r, plan="") for r in manifest.prefixes(old.id)}
    blocks = {row.id for row in manifest.rows()}
    bank.passages = [WIRE, NEW_CARD, LOAN]
    report = engine.refresh(bank.passages, lambda q: bank.ask(engine, q))
    assert report.changed_clusters == (changed,) and report.kept_clusters == 2
    assert (report.replaced_passages, report.dropped_passages) == (1, 0)
    assert (report.warm.num_clusters, report.warm.filled, report.warm.found) == (1, 1, 0)
    assert set(bank.invoked) == set(old.clusters[changed].members), "no other chain is run"
    plan = engine.router.plan
    assert plan.clusters[changed].pins == (NEW_CARD.id,)
    assert CARD.id not in plan.passages
    carried = {r.cluster: replace(r, plan="") for r in manifest.prefixes(plan.id)}
    for cluster in {0, 1, 2} - {changed}:
        assert carried[cluster] == rows[cluster], "its prefix lies where it lay"
    assert blocks <= {row.id for row in manifest.rows()}
    assert engine.check().is_clean


def test_clusters_that_did_not_change_hit_without_computing_anything_again(
    engine: Engine, bank: Bank
) -> None:
    before = {p.id: bank.ask(engine, ASKED[p.id]) for p in (WIRE, LOAN)}
    bank.passages = [WIRE, NEW_CARD, LOAN]
    stored = engine.stats().num_blocks
    report = engine.refresh(bank.passages)
    assert engine.stats().num_blocks == stored, "nothing was computed"
    for passage in (WIRE, LOAN):
        done = bank.ask(engine, ASKED[passage.id])
        assert (done.usage.outcome, done.usage.reason) == ("hit", "pinned_prefix")
        assert done.usage.reused_tokens >= before[passage.id].usage.reused_tokens
        assert done.token_ids == before[passage.id].token_ids
        assert done.usage.plan == report.plan_id
    changed = bank.ask(engine, ASKED[CARD.id])
    assert changed.usage.outcome == "miss", "the KV of the old text is not used"
    assert changed.token_ids == bank.ask(engine, ASKED[CARD.id], reuse="off").token_ids


def test_the_successor_is_in_the_prompt_and_warmed(engine: Engine, bank: Bank) -> None:
    bank.passages = [WIRE, NEW_CARD, LOAN]
    engine.refresh(bank.passages, lambda q: bank.ask(engine, q))
    route = engine.route(ASKED[CARD.id])
    assert [p.text for p in engine.pinned(route)] == [NEW_CARD.text]
    done = bank.ask(engine, ASKED[CARD.id])
    assert done.usage.outcome == "hit"
    assert done.token_ids == bank.ask(engine, ASKED[CARD.id], reuse="off").token_ids


def test_a_passage_that_is_gone_is_pinned_no_more(engine: Engine, bank: Bank) -> None:
    bank.passages = [WIRE, LOAN]
    report = engine.refresh(bank.passages, lambda q: bank.ask(engine, q))
    assert (report.replaced_passages, report.dropped_passages) == (0, 1)
    assert report.warm.problems == {"the cluster has no pinned passages": 1}
    done = bank.ask(engine, ASKED[CARD.id])
    assert CARD.text not in [p.text for p in engine.pinned(engine.route(ASKED[CARD.id]))]
    assert done.token_ids == bank.ask(engine, ASKED[CARD.id], reuse="off").token_ids


def test_the_same_base_changes_nothing(engine: Engine, bank: Bank) -> None:
    plan = engine.router.plan.id
    scored = [replace(p, metadata={**p.metadata}) for p in bank.passages]
    report = engine.refresh(scored, lambda q: bank.ask(engine, q))
    assert not report.is_new and report.plan_id == plan == engine.router.plan.id
    assert report.changed_clusters == () and report.kept_clusters == 3 and report.warm is None
    assert bank.invoked == []


def test_a_refit_after_a_refresh_does_not_bring_the_old_text_back(
    engine: Engine, bank: Bank
) -> None:
    bank.passages = [WIRE, NEW_CARD]
    engine.refresh(bank.passages)
    report = engine.refit(num_clusters=2, max_pins=3)
    pinned = {p.text for p in engine.router.plan.passages.values()}
    assert pinned == {WIRE.text, NEW_CARD.text} and report.num_passages == 2


def test_the_way_back_leads_to_the_old_text(engine: Engine, bank: Bank) -> None:
    engine.refresh([WIRE, NEW_CARD, LOAN])
    engine.versions.rollback()
    assert bank.ask(engine, ASKED[CARD.id]).usage.outcome == "hit"


def test_a_longer_successor_stays_in_the_budget_of_the_build(engine: Engine) -> None:
    bank = Bank()
    room = engine.model.count_tokens(CARD.text) + 40
    engine.build(
        questions=QUESTIONS, retriever=bank.search, num_clusters=1, max_pins=1, max_pin_tokens=room
    )
    (pinned,) = engine.router.plan.passages.values()
    longer = Passage.of(pinned.text * 2, dict(pinned.metadata))
    report = engine.refresh([longer, *(p for p in bank.passages if p.id != pinned.id)])
    assert report.is_new and engine.router.plan.clusters[0].pins == ()


def test_representatives_of_other_passages_are_carried_over(
    open_engine: Callable[..., Engine],
) -> None:
    engine, bank = open_engine(preset="paper"), Bank()
    engine.build(questions=QUESTIONS, retriever=bank.search, num_clusters=3)
    warmed = engine.warm(lambda q: bank.ask(engine, q))
    assert warmed.filled == 3
    bank.passages = [WIRE, NEW_CARD, LOAN]
    report = engine.refresh(bank.passages)
    assert report.dropped_answers >= 1 and report.kept_answers == 3 - report.dropped_answers
    done = bank.ask(engine, ASKED[WIRE.id])
    assert (done.usage.outcome, done.usage.plan) == ("hit", report.plan_id)
    assert bank.ask(engine, ASKED[CARD.id]).usage.reason == "representative_filled"


def test_a_mistake_is_named(engine: Engine) -> None:
    with pytest.raises(ConfigError, match="no plan to refresh"):
        engine.refresh([CARD])
    bank = Bank()
    bank.build(engine)
    plan = engine.router.plan.id
    for passages, message in [([], "none of the 3"), ([Passage.of("x")], "whole knowledge base")]:
        with pytest.raises(ConfigError, match=message):
            engine.refresh(passages)
    with pytest.raises(ConfigError, match="the retriever returned a int"):
        engine.refresh([3])
    with pytest.raises(ConfigError, match="cannot be warmed with"):
        engine.refresh([NEW_CARD, WIRE, LOAN], 3)
    engine.refit(num_clusters=2, share=0.1)
    with pytest.raises(ConfigError, match="on trial"):
        engine.refresh([NEW_CARD, WIRE, LOAN])
    assert engine.router.plan.id == plan


# which passage stands for which


def known(*passages: Passage) -> dict[str, Passage]:
    return {p.id: p for p in passages}


def test_a_successor_is_of_the_same_source() -> None:
    found = successors_of(known(CARD, WIRE), [NEW_CARD, WIRE], source_key="id")
    assert found == {CARD.id: NEW_CARD}
    assert successors_of(known(CARD), [NEW_CARD], source_key="url") == {CARD.id: None}


def test_a_source_of_several_passages_names_no_successor() -> None:
    """Which part of a document stands for which cannot be told."""
    parts = [Passage.of(f"part {i}", {"id": "card"}) for i in range(2)]
    assert successors_of(known(CARD), parts, source_key="id") == {CARD.id: None}
    assert successors_of(known(*parts), [CARD], source_key="id") == dict.fromkeys(known(*parts))
    kept = successors_of(known(*parts), [parts[0], NEW_CARD], source_key="id")
    assert kept == {parts[1].id: None}


def test_metadata_that_a_retriever_adds_is_no_change_and_other_metadata_is() -> None:
    scored = Passage.of(CARD.text, {"id": "card", "score": 0.7})
    assert successors_of(known(scored), [CARD], source_key="id") == {}
    titled = Passage.of(CARD.text, {"id": "card", "title": "Cards"})
    assert successors_of(known(CARD), [titled], source_key="id") == {CARD.id: titled}
