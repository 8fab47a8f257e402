"""The naive twin of the centroid index finds what a scan finds."""

import sys
import threading
from collections.abc import Iterator

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from centroidkv.routing.memory_index import MemoryIndex
from centroidkv.types import Cluster


def clusters(ids: list[int], dim: int = 3) -> list[Cluster]:
    return [Cluster(i, np.zeros(dim, np.float32), "q", (), (), 0.0, 1) for i in ids]


def test_an_empty_index_has_no_nearest() -> None:
    index = MemoryIndex()
    assert index.nearest(np.zeros(3, np.float32)) is None
    index.put([], np.empty((0, 0), np.float32))
    assert index.nearest(np.zeros(3, np.float32)) is None
    index.annotate(0, {"a": "b"})
    index.close()


@given(
    st.lists(st.integers(0, 1000), min_size=1, max_size=20, unique=True),
    st.integers(1, 8),
    st.integers(0, 1000),
)
@settings(deadline=None)
def test_the_nearest_is_that_of_a_scan(ids: list[int], dim: int, seed: int) -> None:
    random = np.random.default_rng(seed)
    points = random.standard_normal((len(ids), dim)).astype(np.float32)
    index = MemoryIndex()
    half = len(ids) // 2
    index.put(clusters(ids[:half], dim), points[:half])
    index.put(clusters(ids[half:], dim), points[half:])
    wanted = random.standard_normal(dim).astype(np.float32)
    far = np.linalg.norm(points - wanted, axis=1)
    found = index.nearest(wanted)
    assert found in ids
    np.testing.assert_allclose(far[ids.index(found)], far.min(), atol=1e-5)
    assert index.nearest(points[0]) == ids[0]


def test_putting_an_id_again_replaces_its_centroid() -> None:
    index, points = MemoryIndex(), np.eye(3, dtype=np.float32)
    index.put(clusters([7, 8]), points[:2])
    index.put(clusters([7]), points[2:])
    assert index.nearest(points[2]) == 7
    assert index.nearest(points[1]) == 8


def test_a_missing_centroid_is_a_fault() -> None:
    index, points = MemoryIndex(), np.eye(3, dtype=np.float32)
    index.put(clusters([0, 1]), points[:2])
    assert index.faults(points[:2]) == []
    assert index.faults(points) != []


@pytest.fixture
def eager_threads() -> Iterator[None]:
    """Let threads take turns as often as they can."""
    before = sys.getswitchinterval()
    sys.setswitchinterval(1e-6)
    yield
    sys.setswitchinterval(before)


@pytest.mark.usefixtures("eager_threads")
def test_questions_are_routed_while_clusters_are_added() -> None:
    """The writer's thread adds clusters, the requests' threads look for the newest of them."""
    index, failures = MemoryIndex(), []
    count = 150
    points = np.arange(count, dtype=np.float32)[:, None]
    index.put(clusters([0], 1), points[:1])
    is_done = threading.Event()

    def look() -> None:
        while not is_done.is_set():
            try:
                index.nearest(points[-1])
            except (IndexError, ValueError) as error:
                failures.append(error)

    readers = [threading.Thread(target=look) for _ in range(3)]
    for reader in readers:
        reader.start()
    for number in range(1, count):
        index.put(clusters([number], 1), points[number : number + 1])
    is_done.set()
    for reader in readers:
        reader.join()
    assert failures == []
