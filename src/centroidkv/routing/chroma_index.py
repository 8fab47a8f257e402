"""The centroid index in Chroma.

One collection per plan version holds what requests are routed by: the reduced centroid, and as
metadata the representative, the pinned passages, the radius and the last KV block per (KV
namespace, head). It is made from the plan and can be made again.
"""

import contextlib
import json
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from centroidkv.errors import IndexClosed, IndexUnavailable
from centroidkv.routing.chroma_client import connect, translated
from centroidkv.routing.chroma_collections import (
    CollectionOptions,
    drop_collection,
    erase_collections,
    open_collection,
)
from centroidkv.routing.exclusion import Exclusion
from centroidkv.routing.memory_index import MemoryIndex
from centroidkv.routing.plan import Plan
from centroidkv.server_address import ServerAddress
from centroidkv.types import Cluster, FloatArray

__all__ = [
    "OF_THE_FOLDER",
    "ChromaIndex",
    "drop_from_server",
    "erase_from_server",
    "open_server",
]

Calling = Callable[[], contextlib.AbstractContextManager[None]]
BATCH = 1000
# Longer than any call of a server may take; one that was broken off is not waited for for ever.
CLOSE_S = 5.0
# Neighbours asked for with a domain. One of these serves it as a rule. Chroma's own filter looks at
# every centroid (39 ms for 20,000, half a second for 100,000); the plan in memory knows the others.
NEIGHBOURS = 64
OF_THE_FOLDER = CollectionOptions()


class ChromaIndex:
    """Centroids of one plan in a Chroma collection. See `CentroidIndex` for the contract.

    Every call of Chroma's is made in a context of `calling`. `release` lets go of the client, when
    no call is under way.

    Raises:
        IndexUnavailable: From every method, when Chroma does not answer.
        IndexClosed: From every method but `close`, behind that.
    """

    def __init__(
        self,
        client: Any,
        plan: Plan,
        release: Callable[[], None],
        *,
        calling: Calling | None = None,
        options: CollectionOptions = OF_THE_FOLDER,
    ) -> None:
        self._release = release
        self._in_context = calling or translated
        self._under_way = Exclusion()
        self._is_closed = False
        self._with_texts = options.with_texts
        self._plan = plan
        self._domains: dict[str, dict[int, Cluster]] = {}
        self._scans: dict[str, MemoryIndex] = {}
        self._noting = threading.Lock()
        self._note(plan.clusters)
        with self._calling():
            self._collection = open_collection(client, plan, options)
            is_whole = self._collection.count() == len(plan.clusters)
        if not is_whole:
            self.put(plan.clusters, plan.reduced())

    def nearest(self, vector: FloatArray, domain: str | None = None) -> int | None:
        if domain is None:
            return next(iter(self._neighbours(vector, 1)), None)
        own = self._domains.get(domain)
        if own is None:
            return None
        found = (c for c in self._neighbours(vector, NEIGHBOURS) if c in own)
        nearest = next(found, None)
        return self._scan(domain, vector) if nearest is None else nearest

    def _neighbours(self, vector: FloatArray, most: int) -> list[int]:
        """Return the ids of the nearest clusters, nearest first."""
        with self._calling():
            found = self._collection.query(
                query_embeddings=vector[None].tolist(),
                n_results=most,
                include=[],
            )
        return [int(i) for i in found["ids"][0]]

    def _scan(self, domain: str, vector: FloatArray) -> int | None:
        """Look through a domain that the question lies far from."""
        with self._noting:
            index = self._scans.get(domain)
            if index is None:
                own = list(self._domains[domain].values())
                index = self._scans[domain] = MemoryIndex()
                index.put(own, self._plan.reduced(own))
        return index.nearest(vector)

    def _note(self, clusters: Sequence[Cluster]) -> None:
        with self._noting:
            for cluster in clusters:
                for domain in (cluster.domain, *cluster.guests):
                    self._domains.setdefault(domain, {})[cluster.id] = cluster
                    self._scans.pop(domain, None)

    def put(self, clusters: Sequence[Cluster], reduced: FloatArray) -> None:
        self._note(clusters)
        with self._calling():
            for start in range(0, len(clusters), BATCH):
                part = clusters[start : start + BATCH]
                self._collection.upsert(
                    ids=[str(c.id) for c in part],
                    embeddings=reduced[start : start + BATCH],
                    metadatas=[_metadata(c, with_texts=self._with_texts) for c in part],
                )

    def annotate(self, cluster: int, prefixes: Mapping[str, str]) -> None:
        with self._calling():
            self._collection.update(
                ids=[str(cluster)],
                metadatas=[{"last_blocks": json.dumps(dict(prefixes), sort_keys=True)}],
            )

    def faults(self, plan_vectors: FloatArray) -> list[str]:
        with self._calling():
            rows = self._collection.get(include=["embeddings"])
        held = dict(zip(map(int, rows["ids"]), np.asarray(rows["embeddings"]), strict=True))
        wrong = [
            number
            for number, vector in enumerate(plan_vectors)
            if number not in held or not np.allclose(held[number], vector, atol=1e-6)
        ]
        extra = sum(number >= len(plan_vectors) for number in held)
        problems = [f"chroma: {len(wrong)} centroids are missing or differ"] if wrong else []
        return problems + ([f"chroma: {extra} centroids belong to no cluster"] if extra else [])

    def representatives(self) -> dict[str, str]:
        """Return the representative of each entry, as Chroma has it."""
        with self._calling():
            rows = self._collection.get(include=["metadatas"])
        entries = zip(rows["ids"], rows["metadatas"], strict=True)
        return {entry: str(about["representative"]) for entry, about in entries}

    @contextlib.contextmanager
    def _calling(self) -> Iterator[None]:
        self._require_open()
        with self._under_way.together():
            self._require_open()
            with self._in_context():
                yield

    def _require_open(self) -> None:
        if self._is_closed:
            raise IndexClosed(f"the index of plan {self._plan.id} was closed meanwhile")

    def close(self) -> None:
        """Let go of the client, behind the calls that are under way; these have CLOSE_S to end."""
        with self._noting:
            was_closed, self._is_closed = self._is_closed, True
        if was_closed:
            return
        with contextlib.suppress(TimeoutError), self._under_way.alone(CLOSE_S):
            pass
        with translated():
            self._release()


def open_server(
    address: ServerAddress, plan: Plan, *, options: CollectionOptions = OF_THE_FOLDER
) -> ChromaIndex:
    """Use a Chroma server that several processes share; every call has a time limit."""
    client = connect(address)
    try:
        return ChromaIndex(client, plan, client.close, options=options)
    except BaseException:
        with contextlib.suppress(IndexUnavailable), translated():
            client.close()
        raise


def drop_from_server(address: ServerAddress, plan_id: str, options: CollectionOptions) -> None:
    """Delete the collection of a plan on a Chroma server."""
    with _connected(address) as client:
        drop_collection(client, plan_id, options)


def erase_from_server(address: ServerAddress, namespace: str, options: CollectionOptions) -> None:
    """Delete the collections of all plans of a namespace on a Chroma server."""
    with _connected(address) as client:
        erase_collections(client, namespace, options)


@contextlib.contextmanager
def _connected(address: ServerAddress) -> Iterator[Any]:
    client = connect(address)
    try:
        yield client
    finally:
        with translated():
            client.close()


def _metadata(cluster: Cluster, *, with_texts: bool) -> dict[str, str | int | float]:
    return {
        "representative": cluster.representative if with_texts else "",
        "pins": json.dumps(cluster.pins),
        "radius": cluster.radius,
        "num_members": cluster.num_members,
        "domain": cluster.domain,
        **{_serves(domain): True for domain in (cluster.domain, *cluster.guests)},
    }


def _serves(domain: str) -> str:
    """Return the key that a cluster's entry has for each domain it serves."""
    return f"serves:{domain}"
