"""Questions are routed whether or not the centroid index answers."""

from collections.abc import Mapping, Sequence
from dataclasses import replace

import numpy as np
import pytest

from centroidkv.errors import IndexUnavailable
from centroidkv.protocols import CentroidIndex
from centroidkv.routing.memory_index import MemoryIndex
from centroidkv.routing.plan import Plan
from centroidkv.routing.projection import fit_projection, identity
from centroidkv.routing.router import Router
from centroidkv.types import Cluster, FloatArray
from small_parts import HashEmbedder

QUESTIONS = ["lost card", "wire abroad", "early loan repayment", "open an account"]


def make_plan(questions: Sequence[str] = QUESTIONS, *, radius: float = 0.5, reduced: int = 0):
    points = HashEmbedder().embed(questions)
    projection = fit_projection(points, dim=reduced, seed=0) if reduced else identity()
    clusters = tuple(Cluster(i, points[i], q, (q,), (), radius, 1) for i, q in enumerate(questions))
    return Plan("f" * 64, 1, projection, clusters)


class WatchedIndex(MemoryIndex):
    """A real index that remembers how it was used."""

    def __init__(self, plan: Plan) -> None:
        super().__init__()
        self.put(plan.clusters, plan.reduced())
        self.notes: dict[int, dict[str, str]] = {}
        self.is_closed = False

    def annotate(self, cluster: int, prefixes: Mapping[str, str]) -> None:
        self.notes[cluster] = dict(prefixes)

    def close(self) -> None:
        self.is_closed = True


class DownIndex:
    """An index whose server is down."""

    def nearest(self, vector: FloatArray, domain: str | None = None) -> int | None:
        raise IndexUnavailable("down")

    def put(self, clusters: Sequence[Cluster], reduced: FloatArray) -> None:
        raise IndexUnavailable("down")

    def annotate(self, cluster: int, prefixes: Mapping[str, str]) -> None:
        raise IndexUnavailable("down")

    def faults(self, plan_vectors: FloatArray) -> list[str]:
        raise IndexUnavailable("down")

    def close(self) -> None:
        raise IndexUnavailable("down")


def refuse(plan: Plan) -> CentroidIndex:
    raise IndexUnavailable("in use by another process")


@pytest.fixture
def embedder() -> HashEmbedder:
    return HashEmbedder()


def test_without_a_plan_nothing_is_admitted(embedder: HashEmbedder) -> None:
    router = Router(embedder, WatchedIndex)
    route = router.route("lost card")
    assert router.plan is None
    assert (route.cluster, route.is_admitted, route.distance) == (None, False, float("inf"))
    assert route.question == "lost card"
    np.testing.assert_array_equal(route.embedding, embedder.embed(["lost card"])[0])
    router.annotate(0, {})
    router.close()


@pytest.mark.parametrize("reduced", [0, 3])
def test_a_question_goes_to_its_nearest_cluster(embedder: HashEmbedder, reduced: int) -> None:
    router = Router(embedder, WatchedIndex)
    router.use(make_plan(reduced=reduced))
    for number, question in enumerate(QUESTIONS):
        route = router.route(question)
        assert route.cluster is not None and route.cluster.id == number
        assert route.is_admitted and route.distance == pytest.approx(0, abs=1e-6)


def test_admission_is_by_distance_in_the_full_space(embedder: HashEmbedder) -> None:
    """Reduced to three dimensions a foreign question may fall onto a centroid; it stays foreign."""
    router = Router(embedder, WatchedIndex)
    router.use(make_plan(radius=0.9, reduced=3))
    foreign = router.route("quantum chromodynamics")
    assert foreign.cluster is not None and not foreign.is_admitted
    vector = embedder.embed(["quantum chromodynamics"])[0]
    assert foreign.distance == pytest.approx(np.linalg.norm(vector - foreign.cluster.centroid))
    akin = router.route("lost my card")
    assert akin.is_admitted and akin.distance > 0


def test_the_border_of_a_radius_is_inside(embedder: HashEmbedder) -> None:
    router = Router(embedder, WatchedIndex)
    router.use(make_plan(radius=2.0))
    far = router.route("lost my card").distance
    plan = make_plan(radius=far)
    router.use(plan)
    assert router.route("lost my card").is_admitted


def test_an_index_that_cannot_be_opened_is_counted_and_routing_goes_on(embedder, caplog) -> None:
    router = Router(embedder, refuse)
    router.use(make_plan())
    assert router.num_index_failures == 1
    route = router.route("wire abroad")
    assert route.cluster is not None and route.cluster.id == 1 and route.is_admitted
    assert router.num_index_failures == 1
    assert "in use by another process" in caplog.text


def test_an_index_that_is_down_is_counted_and_routing_goes_on(embedder, caplog) -> None:
    router = Router(embedder, lambda plan: DownIndex())
    router.use(make_plan())
    for number, question in enumerate(QUESTIONS):
        route = router.route(question)
        assert route.cluster is not None and route.cluster.id == number and route.is_admitted
    router.annotate(0, {"a": "b"})
    assert router.num_index_failures == len(QUESTIONS) + 1
    assert len(caplog.records) == 1, "one warning, not one per request"


def test_a_plan_is_extended_though_the_index_is_down(embedder: HashEmbedder) -> None:
    router = Router(embedder, lambda plan: DownIndex())
    plan = make_plan()
    router.use(plan)
    cluster = replace(plan.clusters[0], id=4, centroid=embedder.embed(["sunday hours"])[0])
    router.extend(plan.grown(cluster, {}), cluster)
    route = router.route("sunday hours")
    assert route.cluster is not None and route.cluster.id == 4
    assert router.num_index_failures == 2


@pytest.mark.parametrize("open_index", [WatchedIndex, refuse])
def test_an_extended_plan_routes_to_its_new_cluster(embedder, open_index) -> None:
    router = Router(embedder, open_index)
    plan = make_plan(reduced=3)
    router.use(plan)
    cluster = replace(plan.clusters[0], id=4, centroid=embedder.embed(["sunday hours"])[0])
    grown = plan.grown(cluster, {})
    router.extend(grown, cluster)
    route = router.route("sunday hours")
    assert route.cluster is cluster and route.is_admitted and router.plan is grown
    assert router.route("lost card").cluster is grown.clusters[0]


def test_a_new_plan_replaces_the_old_one_as_a_whole(embedder: HashEmbedder) -> None:
    opened: list[WatchedIndex] = []

    def opening(plan: Plan) -> CentroidIndex:
        opened.append(WatchedIndex(plan))
        return opened[-1]

    router = Router(embedder, opening)
    router.use(make_plan())
    router.use(make_plan(["sunday hours"]))
    assert [i.is_closed for i in opened] == [True, False]
    route = router.route("lost card")
    assert route.cluster is not None and route.cluster.representative == "sunday hours"
    router.annotate(0, {"model/head": "block"})
    assert (opened[0].notes, opened[1].notes) == ({}, {0: {"model/head": "block"}})
    router.close()
    assert opened[1].is_closed and router.plan is None
    router.close()


def test_an_index_that_fails_to_close_does_not_keep_the_next_plan_out(embedder) -> None:
    router = Router(embedder, lambda plan: DownIndex())
    router.use(make_plan())
    router.use(make_plan(["sunday hours"]))
    assert router.plan is not None and len(router.plan.clusters) == 1
    router.close()


def test_an_index_that_names_an_unknown_cluster_routes_nowhere(embedder: HashEmbedder) -> None:
    class StaleIndex(WatchedIndex):
        def nearest(self, vector: FloatArray, domain: str | None = None) -> int | None:
            return 99

    router = Router(embedder, StaleIndex)
    router.use(make_plan())
    route = router.route("lost card")
    assert route.cluster is None and not route.is_admitted
