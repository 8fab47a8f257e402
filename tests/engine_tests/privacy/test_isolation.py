"""Tenants, place by place: the same tenant hits, another misses, finds, lists and times nothing."""

import sqlite3
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from langchain_core.outputs import Generation

from centroidkv import Engine
from centroidkv.blend.heads import Head
from centroidkv.langchain import CentroidKVAnswerCache
from centroidkv.types import Message
from word_bank import PASSAGES, QUESTIONS, ask, build_and_warm

PROMPT = "A savings account at Harbour Bank has no monthly fee and pays two percent. " * 3
UNKNOWN = "Some other text about something that nobody has ever asked of this bank. " * 3
TENANTS = ("acme", "zeta", "")


@pytest.fixture
def pair(open_engine: Callable[..., Engine]) -> tuple[Engine, Engine]:
    engine = open_engine()
    return engine.for_tenant("acme"), engine.for_tenant("zeta")


def reused(engine: Engine, prompt: str = PROMPT) -> int:
    return engine.generate(prompt, max_tokens=2).usage.reused_tokens


def test_memory(pair: tuple[Engine, Engine]) -> None:
    acme, zeta = pair
    reused(acme)
    acme.model.arenas.forget(acme._policies.exact.residence)
    own = acme.generate(PROMPT, max_tokens=2).usage
    assert (own.tier, own.reused_tokens > 100) == ("memory", True)
    assert reused(zeta) == 0


@pytest.mark.parametrize("remote", [False, True])
def test_disk_and_remote(remote: bool, open_engine: Callable[..., Engine], tmp_path: Path) -> None:
    options = (
        {"remote": {"url": f"file://{tmp_path / 'remote'}", "min_tokens": 64}} if remote else {}
    )
    engine = open_engine(tmp_path / "one", **options)
    reused(engine.for_tenant("acme"))
    engine.close()
    # Of the remote another machine reads, which has nothing of its own.
    path = tmp_path / ("two" if remote else "one")
    for tenant, finds in (("zeta", False), ("acme", True), ("", False)):
        with Engine.open(
            path, model=engine.model, embedder=engine.router.embedder, tenant=tenant, **options
        ) as own:
            ids = own.model.encode(PROMPT).token_ids
            match = own.store.blocks.match(own._learner.namespace, ids)
            tier = own.store.blocks.farthest([s.id for s in match.steps])
        assert (match.num_tokens > 100) is finds, tenant
        assert tier == (("remote" if remote else "disk") if finds else "memory")


def test_arenas(pair: tuple[Engine, Engine]) -> None:
    acme, _ = pair
    reused(acme)
    ids = acme.model.encode(PROMPT).token_ids
    held = [e.model.num_held(ids, namespace=e._policies.exact.residence) for e in pair]
    assert held == [len(ids) - 1, 0]


def test_plans_representatives_and_chroma(pair: tuple[Engine, Engine]) -> None:
    acme, zeta = pair
    build_and_warm(acme)
    assert acme.route(QUESTIONS[0]).is_admitted
    assert zeta.route(QUESTIONS[0]).cluster is None
    assert set(acme.router.indexed().values()) <= set(QUESTIONS)
    assert zeta.router.indexed() == {}
    zeta.build(questions=["what is it"], retriever=lambda q: [], num_clusters=1)
    assert set(zeta.router.indexed().values()) == {"what is it"}
    assert zeta.router.plan.id.partition("-")[0] != acme.router.plan.id.partition("-")[0]


def test_the_records_of_retrievals(pair: tuple[Engine, Engine]) -> None:
    acme, zeta = pair
    build_and_warm(acme)
    found = ask(acme, QUESTIONS[0]).usage
    assert found.cluster is not None
    prompt = f"Answer from the context.\n\n{PASSAGES['card']}\n\nQuestion: {QUESTIONS[0]}"
    assert acme.generate(prompt, max_tokens=2).usage.cluster == found.cluster
    assert zeta.generate(prompt, max_tokens=2).usage.cluster is None
    assert zeta._records.all() == []


def test_drafts(pair: tuple[Engine, Engine]) -> None:
    acme, _ = pair
    acme.generate(PROMPT, max_tokens=12)
    acme.flush()
    ids = acme.model.encode(PROMPT).token_ids
    found = [e._learner.drafts(ids, None) for e in pair]
    assert [bool(d and d.repeat) for d in found] == [True, False]


@pytest.mark.parametrize("distance", [None, 2.0])
def test_the_answer_cache(distance: float | None, pair: tuple[Engine, Engine]) -> None:
    acme, zeta = (CentroidKVAnswerCache(engine=e, max_distance=distance) for e in pair)
    acme.update("Question: who are you", "model", [Generation(text="a bank")])
    assert acme.lookup("Question: who are you", "model") is not None
    assert zeta.lookup("Question: who are you", "model") is None


def test_the_answers_of_representatives(open_engine: Callable[..., Engine]) -> None:
    engine = open_engine(reuse="representative", max_error=None)
    acme, zeta = engine.for_tenant("acme"), engine.for_tenant("zeta")
    for own in (acme, zeta):
        own.build(questions=QUESTIONS, retriever=lambda q: [], num_clusters=3, pca_dim=8)
    ask(acme, QUESTIONS[0])
    assert ask(acme, QUESTIONS[1]).usage.representative == QUESTIONS[0]
    assert ask(zeta, QUESTIONS[1]).usage.representative is None


def test_the_history(pair: tuple[Engine, Engine]) -> None:
    acme, zeta = pair
    ask(acme, QUESTIONS[0])
    acme.flush()
    assert [s.question for s in acme._learner.history.all()] == [QUESTIONS[0]]
    assert zeta._learner.history.all() == []
    assert zeta._learner.history.known_passages() == {}


def test_passages_to_be_blended(open_engine: Callable[..., Engine]) -> None:
    engine = open_engine()
    acme, zeta = engine.for_tenant("acme"), engine.for_tenant("zeta")
    head, ids = Head(tuple(range(40))), tuple(range(40, 140))
    for own in (acme, zeta):
        own._policies.blend.heads.add(head.token_ids)
    acme._policies.blend.passage_learner.fill(head, [ids])
    acme.flush()
    found = [e._policies.blend.passages.find(head, ids).num_tokens for e in (acme, zeta)]
    assert found == [len(ids), 0]
    assert {h.place for h in acme.export().entries} >= {"blocks", "heads"}
    assert acme.forget(everything=True).is_proven
    assert acme._policies.blend.passages.find(head, ids).num_tokens == 0


class Counting:
    """Counts the statements that reach a manifest, and the blocks that are asked for."""

    def __init__(self, engine: Engine) -> None:
        self._blocks = engine.store.blocks
        self.statements: list[str] = []

    def __enter__(self) -> "Counting":
        db: sqlite3.Connection = self._blocks.disk.manifest._db
        db.set_trace_callback(lambda sql: self.statements.append(sql.split("'")[0]))
        return self

    def __exit__(self, *_: object) -> None:
        self._blocks.disk.manifest._db.set_trace_callback(None)


def cost(engine: Engine, prompt: str) -> list[str]:
    with Counting(engine) as counting:
        match = engine.store.blocks.match(
            engine._learner.namespace, engine.model.encode(prompt).token_ids
        )
    assert match.num_tokens < 20, "the template at most"
    return counting.statements


def test_a_foreign_prefix_costs_what_an_unknown_one_costs(pair: tuple[Engine, Engine]) -> None:
    acme, zeta = pair
    reused(zeta, "something of its own")
    zeta.flush()
    before = cost(zeta, PROMPT)
    reused(acme)
    acme.flush()
    foreign, unknown = cost(zeta, PROMPT), cost(zeta, UNKNOWN)
    assert foreign == before == unknown
    assert len(foreign) > 0


def remote_cost(engine: Engine, prompt: str, monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Return how many names each call to the remote asks for, of a lookup of a prompt."""
    remote = engine.store.blocks.remote
    calls: list[int] = []
    sizes = remote._store.sizes
    with monkeypatch.context() as patch:
        patch.setattr(remote._store, "sizes", lambda n: calls.append(len(n)) or sizes(n))
        patch.setattr(remote._store, "read", lambda name, most: calls.append(-1))
        cost(engine, prompt)
    return calls


def test_a_foreign_prefix_on_the_remote_costs_what_an_unknown_one_costs(
    open_engine: Callable[..., Engine], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    engine = open_engine(remote={"url": f"file://{tmp_path / 'remote'}", "min_tokens": 64})
    acme, zeta = engine.for_tenant("acme"), engine.for_tenant("zeta")
    reused(acme)
    engine.flush()
    ids = acme.model.encode(PROMPT).token_ids
    own = next(s.id for s in engine.store.blocks.match(acme._learner.namespace, ids).steps)
    assert engine.store.blocks.remote.has(own)
    foreign = remote_cost(zeta, PROMPT, monkeypatch)
    # What was looked for a moment ago is known not to be there, whoever has it.
    assert [remote_cost(zeta, p, monkeypatch) for p in (PROMPT, UNKNOWN)] == [[], foreign]
    assert len(foreign) > 0


def test_forgetting_leaves_what_others_have_on_the_remote_usable(
    open_engine: Callable[..., Engine], tmp_path: Path
) -> None:
    remote = {"url": f"file://{tmp_path / 'remote'}", "min_tokens": 64}
    with open_engine(tmp_path / "one", remote=remote) as engine:
        reused(engine.for_tenant("zeta"))
        engine.flush()
    engine = open_engine(tmp_path / "two", remote=remote)
    acme = engine.for_tenant("acme")
    assert acme.export().entries == ()
    assert acme.forget(everything=True).is_proven
    assert dict(engine.stats().remote.faults) == {}
    assert reused(engine.for_tenant("zeta")) > 100


def test_a_tenants_view_lists_nothing_of_anothers(pair: tuple[Engine, Engine]) -> None:
    acme, zeta = pair
    build_and_warm(acme)
    ask(acme, QUESTIONS[0])
    acme.generate([Message("user", PROMPT)], max_tokens=2)
    acme.flush()
    assert zeta.export().entries == ()
    assert zeta.pins.all() == []
    assert zeta.versions.kept() == []
    stats = zeta.stats()
    assert (stats.num_blocks, stats.plan_id, stats.num_clusters, stats.figures) == (0, None, 0, ())
    assert stats.disk_bytes > 0  # the shared budget, which all can see
    assert acme.stats().num_blocks > 0
    assert acme.stats().plan_id == acme.router.plan.id


def test_eviction_of_anothers_is_by_the_shared_budget_alone(
    open_engine: Callable[..., Engine],
) -> None:
    engine = open_engine(disk_budget_bytes=1 << 20)
    acme, zeta = engine.for_tenant("acme"), engine.for_tenant("zeta")
    reused(acme)
    engine.flush()
    evicted: Iterator[int] = (engine.stats().counters.get("evicted_blocks", 0) for _ in range(9))
    for number in range(3):
        reused(zeta, f"{number} {UNKNOWN}")
    engine.flush()
    assert next(evicted) == 0
    for number in range(12):
        reused(zeta, f"{number}. {UNKNOWN * 3}")
    engine.flush()
    assert next(evicted) > 0
    assert engine.stats().disk_bytes <= 1 << 20
