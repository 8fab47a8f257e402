"""The search settings of the centroid index: near to exact, kept, and renewed when they change."""

import contextlib
import sqlite3
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import chromadb
import numpy as np
import pytest

from centroidkv.routing.chroma_collections import HNSW
from centroidkv.routing.chroma_index import ChromaIndex
from centroidkv.routing.clustering import nearest_centroid
from centroidkv.routing.embedded_chroma import EmbeddedChroma
from centroidkv.routing.plan import Plan
from centroidkv.routing.projection import identity
from centroidkv.types import Cluster

COUNT = 4000


def plan_of(vectors: np.ndarray) -> Plan:
    clusters = [Cluster(i, v, f"q{i}", (), ("p",), 0.5, 1) for i, v in enumerate(vectors)]
    return Plan("f" * 64, 1, identity(), tuple(clusters))


def clumps(count: int, *, seed: int) -> np.ndarray:
    """Vectors as centroids lie: around some hundred topics, in 32 dimensions."""
    topics = np.random.default_rng(0).standard_normal((200, 32))
    random = np.random.default_rng(seed)
    points = topics[random.integers(0, 200, count)] + 0.5 * random.standard_normal((count, 32))
    return points.astype(np.float32)


@pytest.fixture
def client(tmp_path: Path) -> Iterator[chromadb.ClientAPI]:
    settings = chromadb.Settings(anonymized_telemetry=False)
    client = chromadb.PersistentClient(str(tmp_path / "chroma"), settings)
    yield client
    client.close()


def test_the_index_finds_the_nearest_of_thousands_also_after_reopening(tmp_path: Path) -> None:
    plan, asked = plan_of(clumps(COUNT, seed=1)), clumps(300, seed=2)
    exact = nearest_centroid(asked, plan.reduced())
    chroma = EmbeddedChroma(tmp_path / "chroma", quarantine=tmp_path / "quarantine")
    for _ in range(2):
        index = chroma.open(plan)
        found = np.array([index.nearest(v) for v in asked])
        assert (found == exact).mean() >= 0.99
        assert index.faults(plan.reduced()) == []
        index.close()


def test_a_collection_made_with_other_settings_is_made_anew(client: chromadb.ClientAPI) -> None:
    plan = plan_of(clumps(50, seed=1))
    name = f"centroids-{plan.id}"
    old = client.create_collection(name, embedding_function=None, metadata={"hnsw:space": "l2"})
    old.add(ids=[str(i) for i in range(50)], embeddings=np.zeros((50, 32), np.float32))
    index = ChromaIndex(client, plan, lambda: None)
    made_with = client.get_collection(name, embedding_function=None).configuration_json["hnsw"]
    assert {k: made_with[k] for k in HNSW} == HNSW
    assert index.faults(plan.reduced()) == []


def test_a_collection_made_with_the_same_settings_is_kept(client: chromadb.ClientAPI) -> None:
    plan = plan_of(clumps(50, seed=1))
    ChromaIndex(client, plan, lambda: None).annotate(3, {"namespace/head": "block"})
    ChromaIndex(client, plan, lambda: None)
    rows = client.get_collection(f"centroids-{plan.id}", embedding_function=None).get(ids=["3"])
    assert "block" in rows["metadatas"][0]["last_blocks"]


@pytest.mark.parametrize("num_domains", [2, 300])
def test_with_a_domain_the_nearest_that_serves_it_is_found(
    client: chromadb.ClientAPI, num_domains: int
) -> None:
    """Among few domains the neighbours have one that serves; among many a filter must find it."""
    vectors, asked = clumps(2000, seed=1), clumps(100, seed=2)
    clusters = tuple(
        Cluster(
            i, v, f"q{i}", (), ("p",), 0.5, 1, f"d{i % num_domains}", (f"d{(i + 1) % num_domains}",)
        )
        for i, v in enumerate(vectors)
    )
    plan = Plan("f" * 64, 1, identity(), clusters)
    index = ChromaIndex(client, plan, lambda: None)
    right = 0
    for number, vector in enumerate(asked):
        domain = f"d{number % num_domains}"
        own = [c.id for c in clusters if domain in (c.domain, *c.guests)]
        exact = own[int(nearest_centroid(vector[None], vectors[own])[0])]
        right += index.nearest(vector, domain) == exact
    assert right >= 99
    assert index.nearest(asked[0], "unheard of") is None
    more = Cluster(2000, asked[0], "new", (), ("p",), 0.5, 1, "unheard of")
    index.put([more], asked[:1])
    assert index.nearest(asked[0], "unheard of") == 2000


def test_erasing_a_plan_beside_writes_to_another_one_leaves_the_file_sound(tmp_path: Path) -> None:
    chroma = EmbeddedChroma(tmp_path / "chroma", quarantine=tmp_path / "quarantine")
    vectors = clumps(140, seed=3)
    kept = plan_of(vectors[:100])
    gone = Plan("e" * 64, 1, identity(), kept.clusters[:5])
    index = chroma.open(kept)
    later = plan_of(vectors).clusters[100:]

    def erase() -> None:
        for _ in range(40):
            chroma.open(gone).close()
            chroma.erase(gone.namespace)

    with ThreadPoolExecutor(1) as pool:
        erased = pool.submit(erase)
        for cluster in later:
            index.put([cluster], cluster.centroid[None])
        erased.result()
    assert sorted(map(int, index.representatives())) == list(range(140))
    index.close()
    with contextlib.closing(sqlite3.connect(tmp_path / "chroma/chroma.sqlite3")) as db:
        assert db.execute("PRAGMA integrity_check").fetchall() == [("ok",)]


def test_erasing_a_plan_beside_another_one_leaves_none_of_its_centroids(tmp_path: Path) -> None:
    folder = tmp_path / "chroma"
    chroma = EmbeddedChroma(folder, quarantine=tmp_path / "quarantine")
    vectors = clumps(1500, seed=5)
    gone = Plan("e" * 64, 1, identity(), plan_of(vectors).clusters)
    index = chroma.open(plan_of(clumps(20, seed=6)))
    chroma.open(gone).close()

    def is_held() -> bool:
        files = [f for f in folder.rglob("*") if f.is_file()]
        rows = [v.astype(np.float32).tobytes() for v in vectors[:50]]
        return any(row in raw for raw in (f.read_bytes() for f in files) for row in rows)

    assert is_held()
    chroma.erase(gone.namespace)
    assert not is_held()
    index.close()
    assert not is_held()
    assert len([path for path in folder.iterdir() if path.is_dir()]) <= 1
