"""The centroid index in a real Chroma: embedded, damaged, in use elsewhere, and as a server."""

import gc
import os
import shutil
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import chromadb
import pytest
from chromadb.api.shared_system_client import SharedSystemClient

from centroidkv import Engine
from centroidkv.errors import IndexUnavailable
from centroidkv.maintenance import check_store
from centroidkv.routing.chroma_client import connect
from centroidkv.routing.plan import Plan
from centroidkv.server_address import address_of
from centroidkv.store import Store
from chroma_process import ChromaProcess
from half_dead_proxy import HalfDeadProxy
from word_bank import QUESTIONS, ask, build_and_warm, search


def nearest_of_all(engine: Engine) -> list[int | None]:
    clusters = [engine.route(q).cluster for q in QUESTIONS]
    return [c.id if c else None for c in clusters]


def test_the_collection_holds_what_requests_are_routed_by(
    open_engine: Callable[..., Engine], tmp_path: Path
) -> None:
    engine = open_engine()
    build_and_warm(engine)
    plan = engine.router.plan
    engine.close()
    client = chromadb.PersistentClient(
        str(tmp_path / "store/chroma"), chromadb.Settings(anonymized_telemetry=False)
    )
    rows = client.get_collection(f"centroids-{plan.id}", embedding_function=None).get(
        include=["metadatas", "embeddings"]
    )
    client.close()
    assert sorted(int(i) for i in rows["ids"]) == [c.id for c in plan.clusters]
    for number, metadata in zip(rows["ids"], rows["metadatas"], strict=True):
        cluster = plan.clusters[int(number)]
        assert metadata["representative"] == cluster.representative
        assert metadata["radius"] == pytest.approx(cluster.radius)
        assert all(pin in metadata["pins"] for pin in cluster.pins)
        assert "/" in metadata["last_blocks"], "the cluster's KV is noted"
    assert len(rows["embeddings"][0]) == plan.projection.components.shape[0]


@pytest.mark.parametrize("harm", ["flip", "truncate", "missing", "unclean"])
def test_a_damaged_or_missing_folder_is_rebuilt_from_the_plan(
    open_engine: Callable[..., Engine], tmp_path: Path, harm: str
) -> None:
    with open_engine() as engine:
        build_and_warm(engine)
        expected = nearest_of_all(engine)
    folder = tmp_path / "store/chroma"
    database = folder / "chroma.sqlite3"
    if harm == "flip":
        raw = bytearray(database.read_bytes())
        for at in range(1000, len(raw), len(raw) // 20):
            raw[at] ^= 0xFF
        database.write_bytes(raw)
    elif harm == "truncate":
        os.truncate(database, database.stat().st_size // 2)
    elif harm == "missing":
        shutil.rmtree(folder)
    else:
        (tmp_path / "store/chroma.digest").unlink()
    engine = open_engine()
    assert nearest_of_all(engine) == expected
    assert engine.router.num_index_failures == 0
    assert ask(engine, "please block my lost card").usage.outcome == "hit"


def test_check_compares_every_centroid_with_the_plan(
    open_engine: Callable[..., Engine], tmp_path: Path
) -> None:
    engine = open_engine()
    build_and_warm(engine)
    plan = engine.router.plan
    assert engine.check().is_clean
    other = chromadb.PersistentClient(
        str(tmp_path / "store/chroma"), chromadb.Settings(anonymized_telemetry=False)
    )
    collection = other.get_collection(f"centroids-{plan.id}", embedding_function=None)
    collection.update(ids=["0"], embeddings=[[9.0] * plan.reduced().shape[1]])
    other.close()
    assert any("1 centroids" in p for p in engine.check().problems)
    assert engine.check(repair=True).repaired
    assert engine.check().is_clean


def test_check_of_a_closed_store_notices_a_damaged_chroma_folder(
    open_engine: Callable[..., Engine], tmp_path: Path
) -> None:
    with open_engine() as engine:
        build_and_warm(engine)
        expected = nearest_of_all(engine)
    database = tmp_path / "store/chroma/chroma.sqlite3"
    database.write_bytes(database.read_bytes()[:-1000])
    store = Store.open(tmp_path / "store", create=False)
    try:
        assert any("chroma" in p for p in check_store(store).problems)
        assert check_store(store, repair=True).repaired
        assert check_store(store).is_clean
    finally:
        store.close()
    assert nearest_of_all(open_engine()) == expected


def test_a_second_engine_routes_from_the_plan_in_memory(
    open_engine: Callable[..., Engine], caplog
) -> None:
    first = open_engine()
    build_and_warm(first)
    second = open_engine()
    assert "in use by another process, or another engine of this one" in caplog.text
    assert nearest_of_all(second) == nearest_of_all(first)
    assert ask(second, "please block my lost card").usage.outcome == "hit"


@pytest.fixture
def chroma_server(tmp_path: Path) -> Iterator[str]:
    with ChromaProcess(tmp_path / "server") as server:
        yield server.url


def test_two_engines_share_a_server_and_survive_its_end(
    open_engine: Callable[..., Engine], chroma_server: str, tmp_path: Path
) -> None:
    first = open_engine(chroma=chroma_server)
    build_and_warm(first)
    second = open_engine(chroma=chroma_server)
    assert nearest_of_all(second) == nearest_of_all(first)
    assert second.router.num_index_failures == 0
    assert not (tmp_path / "store/chroma").exists()


def returned(engine: Engine, seconds: float) -> bool:
    """Ask until the server routes again."""
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        engine.route(QUESTIONS[0])
        if engine.router.routes_by == "chroma":
            return True
        time.sleep(0.1)
    return False


def test_a_proxy_whose_server_hangs_holds_up_neither_opening_nor_forgetting(
    open_engine: Callable[..., Engine], chroma_server: str
) -> None:
    with HalfDeadProxy(chroma_server) as proxy:
        with open_engine(chroma=proxy.url) as engine:
            build_and_warm(engine)
        proxy.hang()
        began = time.monotonic()
        engine = open_engine(chroma=proxy.url)
        assert ask(engine, "please block my lost card").usage.outcome == "hit"
        assert engine.stats().chroma_server != "closed"
        assert engine.forget(question=QUESTIONS[0]).problems
        assert time.monotonic() - began < 8
        proxy.go_on()
        assert returned(engine, 5), "the server is not asked again"
        assert engine.stats().chroma_server == "closed"


def test_a_collection_on_a_server_that_begins_to_hang_is_not_dropped_for_ever(
    open_engine: Callable[..., Engine], chroma_server: str
) -> None:
    with HalfDeadProxy(chroma_server) as proxy:
        engine = open_engine(chroma=proxy.url)
        build_and_warm(engine)
        proxy.hang()
        began = time.monotonic()
        for _ in range(3):
            with pytest.raises(IndexUnavailable):
                engine.store.centroids.erase(engine.router.plan.namespace)
        assert time.monotonic() - began < 5
        assert engine.stats().chroma_server != "closed"
        proxy.go_on()
        assert returned(engine, 5), "the server is not asked again"
        engine.store.centroids.erase(engine.router.plan.namespace)


def test_a_server_that_is_down_costs_no_answer(open_engine: Callable[..., Engine], caplog) -> None:
    with open_engine() as engine:
        build_and_warm(engine)
    engine = open_engine(chroma="http://127.0.0.1:9")
    assert ask(engine, "please block my lost card").usage.outcome == "hit"
    assert engine.router.num_index_failures >= 1
    assert len([r for r in caplog.records if "from the plan in memory" in r.message]) == 1


def test_the_index_finds_what_a_scan_finds(open_engine: Callable[..., Engine]) -> None:
    engine = open_engine()
    many = [f"{q} {word}" for q in QUESTIONS for word in "abcdefghij"]
    engine.build(questions=many, retriever=search, num_clusters=30, max_pins=1, pca_dim=16)
    plan = engine.router.plan
    for question in many[::7]:
        route = engine.route(question)
        reduced = plan.projection.transform(route.embedding[None])
        scan = ((plan.reduced() - reduced) ** 2).sum(1).argmin()
        assert route.cluster.id == scan


def test_a_server_forgets_what_is_forgotten(
    open_engine: Callable[..., Engine], chroma_server: str
) -> None:
    engine = open_engine(chroma=chroma_server)
    build_and_warm(engine)
    asked = engine.router.plan.clusters[0].representative
    assert asked in engine.router.indexed().values()
    assert engine.forget(question=asked).is_proven
    assert asked not in engine.router.indexed().values()
    assert len(engine.router.indexed()) == 3
    assert engine.router.num_index_failures == 0


def test_stores_that_share_a_server_keep_their_collections_apart(
    open_engine: Callable[..., Engine], chroma_server: str, tmp_path: Path
) -> None:
    engine, other = (open_engine(tmp_path / name, chroma=chroma_server) for name in ("a", "b"))
    for one, order in ((engine, 1), (other, -1)):
        one.build(
            questions=QUESTIONS[::order], retriever=search, num_clusters=3, max_pins=1, pca_dim=8
        )
    assert engine.router.plan.id == other.router.plan.id
    assert engine.router.faults() == other.router.faults() == []
    assert engine.forget(everything=True).is_proven
    assert other.router.faults() == []
    assert other.router.routes_by == "chroma"


def test_forgetting_finds_collections_on_a_server_whose_plans_are_lost(
    open_engine: Callable[..., Engine], chroma_server: str, tmp_path: Path
) -> None:
    with open_engine(chroma=chroma_server) as engine:
        build_and_warm(engine)
        namespace = engine.router.plan.namespace
    for path in (tmp_path / "store/plans").iterdir():
        path.unlink()
    client = connect(address_of(chroma_server))
    client.create_collection("somebody-elses", metadata={"of": "another program"})
    assert [c for c in client.list_collections() if Plan.ids_begin_with(namespace) in c.name]
    with open_engine(chroma=chroma_server) as engine:
        assert engine.forget(question=QUESTIONS[0]).is_proven
    assert [c.name for c in client.list_collections()] == ["somebody-elses"]
    client.close()


def test_connections_to_a_server_leave_nothing_behind(chroma_server: str) -> None:
    def held() -> tuple[int, int]:
        gc.collect()
        return len(list(Path("/proc/self/fd").iterdir())), len(
            SharedSystemClient._identifier_to_system
        )

    connect(address_of(chroma_server)).close()
    before = held()
    for _ in range(5):
        connect(address_of(chroma_server)).close()
    assert held() == before
    with HalfDeadProxy(chroma_server) as proxy:
        proxy.hang()
        with pytest.raises(IndexUnavailable):
            connect(address_of(proxy.url))
    assert held()[1] == before[1]
