"""A plan comes back as it was saved, and a damaged one is noticed and passed over."""

import hashlib
import io
import os
from dataclasses import replace
from datetime import date
from pathlib import Path

import numpy as np
import pytest

from centroidkv.errors import CacheCorrupt, CacheError, CacheMismatch
from centroidkv.files import set_aside
from centroidkv.routing.plan import MAGIC, Plan, PlanFolder, load_plan, save_plan
from centroidkv.routing.projection import fit_projection, identity
from centroidkv.types import Cluster, Passage

NAMESPACE = hashlib.sha256(b"plan").hexdigest()
PASSAGES = [
    Passage.of("A card is blocked in the app.", {"title": "Karten", "n": 3, "tags": ["a", "b"]}),
    Passage.of("한국어 문장 🏦\u2028", {"page": None}),
    Passage.of("third"),
]


def make_plan(*, version: int = 1, num_clusters: int = 3, is_online: bool = False) -> Plan:
    random = np.random.default_rng(0)
    points = random.standard_normal((20, 6)).astype(np.float32)
    clusters = tuple(
        Cluster(
            id=i,
            centroid=points[i],
            representative=f"question {i}?",
            members=(f"question {i}?", "질문 둘"),
            pins=tuple(p.id for p in PASSAGES[: i + 1]),
            radius=float(random.random()),
            num_members=i + 2,
            domain="cards" if i else "",
        )
        for i in range(num_clusters)
    )
    projection = identity() if is_online else fit_projection(points, dim=3, seed=0)
    known = {p.id: p for p in PASSAGES}
    return Plan(NAMESPACE, version, projection, clusters, known, is_online)


def assert_same(one: Plan, other: Plan) -> None:
    assert (one.namespace, one.version, one.is_online, one.id) == (
        other.namespace,
        other.version,
        other.is_online,
        other.id,
    )
    assert one.projection.mean.tobytes() == other.projection.mean.tobytes()
    assert one.projection.components.tobytes() == other.projection.components.tobytes()
    assert one.projection.is_identity == other.projection.is_identity
    assert dict(one.passages) == dict(other.passages)
    assert len(one.clusters) == len(other.clusters)
    for mine, yours in zip(one.clusters, other.clusters, strict=True):
        assert mine.centroid.tobytes() == yours.centroid.tobytes()
        rest = np.zeros(1, np.float32)
        assert replace(mine, centroid=rest) == replace(yours, centroid=rest)


@pytest.mark.parametrize("is_online", [False, True])
@pytest.mark.parametrize("num_clusters", [1, 3])
def test_a_plan_comes_back_as_it_was_saved(tmp_path: Path, num_clusters, is_online) -> None:
    plan = make_plan(num_clusters=num_clusters, is_online=is_online)
    save_plan(plan, tmp_path / "a.plan")
    loaded = load_plan(tmp_path / "a.plan")
    assert_same(loaded, plan)
    assert loaded.is_same_as(plan)
    np.testing.assert_array_equal(loaded.reduced(), plan.reduced())


def test_a_plan_without_clusters_comes_back_too(tmp_path: Path) -> None:
    plan = Plan(NAMESPACE, 1, identity(), ())
    save_plan(plan, tmp_path / "a.plan")
    assert load_plan(tmp_path / "a.plan").clusters == ()


def test_saving_twice_writes_the_same_bytes(tmp_path: Path) -> None:
    for name in ("one", "two"):
        save_plan(make_plan(), tmp_path / name)
    assert (tmp_path / "one").read_bytes() == (tmp_path / "two").read_bytes()


def test_metadata_that_json_does_not_know_is_saved_as_text(tmp_path: Path) -> None:
    passage = Passage.of("text", {"day": date(2025, 1, 2)})
    plan = replace(make_plan(num_clusters=1), passages={passage.id: passage})
    save_plan(plan, tmp_path / "a.plan")
    loaded = load_plan(tmp_path / "a.plan")
    assert loaded.passages[passage.id].metadata == {"day": "2025-01-02"}
    assert loaded.is_same_as(plan)


def test_plans_that_differ_in_nothing_but_their_version_are_the_same() -> None:
    assert make_plan(version=1).is_same_as(make_plan(version=2))
    assert not make_plan().is_same_as(make_plan(num_clusters=2))
    nearer = replace(make_plan().clusters[0], radius=0.1)
    assert not make_plan().is_same_as(
        replace(make_plan(), clusters=(nearer, *make_plan().clusters[1:]))
    )


def test_a_grown_plan_has_one_cluster_more_and_the_old_one_is_unchanged() -> None:
    plan = make_plan(num_clusters=2)
    extra = Passage.of("new")
    cluster = replace(plan.clusters[0], id=2, pins=(extra.id,))
    grown = plan.grown(cluster, {extra.id: extra})
    assert (len(plan.clusters), len(grown.clusters)) == (2, 3)
    assert grown.pinned(cluster) == [extra] and extra.id not in plan.passages
    assert grown.id == plan.id


def test_clusters_are_found_by_id_and_unknown_ids_are_none() -> None:
    plan = make_plan()
    assert plan.cluster(2) is plan.clusters[2]
    assert plan.cluster(3) is plan.cluster(-1) is None


def test_pinned_passages_come_in_the_order_of_the_pins() -> None:
    plan = make_plan()
    assert plan.pinned(plan.clusters[2]) == PASSAGES
    unknown = replace(plan.clusters[0], pins=("gone", PASSAGES[1].id))
    assert plan.pinned(unknown) == [PASSAGES[1]]


# damage


def test_every_flipped_byte_is_noticed(tmp_path: Path) -> None:
    path = tmp_path / "a.plan"
    save_plan(make_plan(), path)
    sound = path.read_bytes()
    for place in [*range(60), *range(60, len(sound), 13), len(sound) - 1]:
        altered = bytearray(sound)
        altered[place] ^= 0x10
        path.write_bytes(altered)
        with pytest.raises(CacheError):
            load_plan(path)


def test_every_truncation_and_extension_is_noticed(tmp_path: Path) -> None:
    path = tmp_path / "a.plan"
    save_plan(make_plan(), path)
    sound = path.read_bytes()
    for length in [*range(60), *range(60, len(sound), 17), len(sound) - 1]:
        path.write_bytes(sound[:length])
        with pytest.raises(CacheError):
            load_plan(path)
    path.write_bytes(sound + b"\0")
    with pytest.raises(CacheCorrupt, match=r"a\.plan"):
        load_plan(path)


def test_another_format_is_a_mismatch(tmp_path: Path) -> None:
    path = tmp_path / "a.plan"
    save_plan(make_plan(), path)
    path.write_bytes(b"CKVPLAN9" + path.read_bytes()[8:])
    with pytest.raises(CacheMismatch, match="CKVPLAN1"):
        load_plan(path)


def npz(**arrays: np.ndarray) -> bytes:
    buffer = io.BytesIO()
    np.savez(buffer, **arrays)
    return buffer.getvalue()


def npy(array: np.ndarray) -> bytes:
    buffer = io.BytesIO()
    np.save(buffer, array, allow_pickle=True)
    return buffer.getvalue()


PAYLOADS = {
    "nothing": b"",
    "text": b"dear bank",
    "an array": npy(np.zeros(3)),
    "a pickle": npy(np.array([{"a": 1}], dtype=object)),
    "no arrays": npz(),
    "texts that are a list": npz(
        mean=np.zeros(0),
        components=np.zeros((0, 0)),
        centroids=np.zeros((0, 0)),
        radii=np.zeros(0),
        texts=np.frombuffer(b"[]", np.uint8),
    ),
    "passages that are a list": npz(
        mean=np.zeros(0),
        components=np.zeros((0, 0)),
        centroids=np.zeros((0, 0)),
        radii=np.zeros(0),
        texts=np.frombuffer(b'{"clusters": [], "passages": []}', np.uint8),
    ),
}


@pytest.mark.parametrize("payload", PAYLOADS.values(), ids=PAYLOADS.keys())
def test_a_sound_checksum_over_something_else_is_corrupt(tmp_path: Path, payload: bytes) -> None:
    path = tmp_path / "a.plan"
    path.write_bytes(MAGIC + hashlib.sha256(payload).digest() + payload)
    with pytest.raises(CacheCorrupt):
        load_plan(path)


# the folder


@pytest.fixture
def folder(tmp_path: Path) -> PlanFolder:
    return PlanFolder(tmp_path / "plans")


def test_an_empty_or_missing_folder_has_no_plan(folder: PlanFolder) -> None:
    assert folder.latest(NAMESPACE) == (None, [])
    assert folder.files() == []


def test_the_newest_version_is_in_force(folder: PlanFolder) -> None:
    for version in (2, 10, 9, 1):
        folder.save(make_plan(version=version))
    plan, problems = folder.latest(NAMESPACE)
    assert plan is not None and plan.version == 10 and problems == []
    assert len(folder.files(NAMESPACE)) == 4


@pytest.mark.parametrize("damage", [b"", b"CKVPLAN1", b"foreign" * 100])
def test_an_older_version_steps_in_for_a_damaged_one(folder: PlanFolder, damage: bytes) -> None:
    folder.save(make_plan(version=1, num_clusters=1))
    folder.save(make_plan(version=2)).write_bytes(damage)
    plan, problems = folder.latest(NAMESPACE)
    assert plan is not None and plan.version == 1
    assert len(problems) == 1 and "000002.plan" in str(problems[0])


def test_where_every_version_is_damaged_there_is_no_plan(folder: PlanFolder) -> None:
    for version in (1, 2):
        os.truncate(folder.save(make_plan(version=version)), 100)
    plan, problems = folder.latest(NAMESPACE)
    assert plan is None and len(problems) == 2


def test_a_plan_that_cannot_be_read_is_passed_over(folder: PlanFolder) -> None:
    folder.save(make_plan(version=1))
    path = folder.save(make_plan(version=2))
    path.unlink()
    path.mkdir()
    plan, _ = folder.latest(NAMESPACE)
    assert plan is not None and plan.version == 1


def test_a_plan_of_another_namespace_is_never_in_force(folder: PlanFolder) -> None:
    other = "f" * 48 + NAMESPACE[-16:]
    folder.save(replace(make_plan(version=1), namespace=NAMESPACE))
    folder.save(replace(make_plan(version=2), namespace=other))
    plan, _ = folder.latest(NAMESPACE)
    assert plan is not None and (plan.namespace, plan.version) == (NAMESPACE, 1)
    assert folder.latest("0" * 64) == (None, [])


def test_a_plan_set_aside_is_kept_in_quarantine(folder: PlanFolder, tmp_path: Path) -> None:
    path = folder.save(make_plan())
    set_aside(path, tmp_path / "quarantine")
    assert folder.files() == [] and (tmp_path / "quarantine" / path.name).exists()
