"""Where the centroids of a store's plans are indexed: in its own folder, or on a server.

Chroma is imported here, on first use: opening a store without a plan loads none of it.
"""

import threading
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

from centroidkv.errors import IndexUnavailable
from centroidkv.protocols import CentroidIndex
from centroidkv.routing.index_server import IndexServer
from centroidkv.routing.memory_index import MemoryIndex
from centroidkv.routing.plan import Plan
from centroidkv.server_address import address_of

if TYPE_CHECKING:
    from centroidkv.routing.chroma_collections import CollectionOptions
    from centroidkv.routing.embedded_chroma import EmbeddedChroma

__all__ = ["Centroids", "EmbeddedCentroids", "ScannedCentroids", "ServedCentroids"]


class Centroids(Protocol):
    """The indexes of a store, shared by all its tenants."""

    @property
    def server_state(self) -> str | None:
        """The state of the server's breaker; None without a server."""

    def open(self, plan: Plan) -> CentroidIndex:
        """Open the index of a plan; raise `IndexUnavailable` where there is none to be had."""

    def drop(self, plan_id: str) -> None:
        """Delete the index of a plan, or raise `IndexUnavailable`."""

    def erase(self, namespace: str) -> None:
        """Delete the indexes of all plans of a namespace, and what files keep of them.

        None of these is open.

        Raises:
            IndexUnavailable: Chroma is down, or another process has the folder open.
        """

    def close(self) -> None:
        """Release what no index does."""


class EmbeddedCentroids:
    """The store's own Chroma, opened on first use."""

    server_state = None

    def __init__(self, folder: Path, *, read_only: bool) -> None:
        self._folder = folder
        self._read_only = read_only
        self._chroma: EmbeddedChroma | None = None
        self._lock = threading.Lock()

    def open(self, plan: Plan) -> CentroidIndex:
        if self._read_only:
            raise IndexUnavailable(f"{self._folder} is read-only")
        return self._embedded().open(plan)

    def erase(self, namespace: str) -> None:
        if self._folder.joinpath("chroma").exists():
            self._embedded().erase(namespace)

    def _embedded(self) -> "EmbeddedChroma":
        from centroidkv.routing.embedded_chroma import EmbeddedChroma

        with self._lock:
            if self._chroma is None:
                self._chroma = EmbeddedChroma(
                    self._folder / "chroma", quarantine=self._folder / "quarantine"
                )
            return self._chroma

    def drop(self, plan_id: str) -> None:
        if self._chroma is None:
            raise IndexUnavailable(f"{self._folder / 'chroma'} is not open in this process")
        self._chroma.drop(plan_id)

    def close(self) -> None: ...


class ScannedCentroids:
    """The centroids of an encrypted store: searched in memory, since Chroma writes them in clear.

    Opened like the index of any plan, and made from the plan each time.
    """

    server_state = None

    def open(self, plan: Plan) -> CentroidIndex:
        index = MemoryIndex()
        index.put(plan.clusters, plan.reduced())
        return index

    def drop(self, plan_id: str) -> None: ...

    def erase(self, namespace: str) -> None: ...

    def close(self) -> None: ...


class ServedCentroids:
    """A Chroma server that several processes share, and several stores may.

    `given` says where, as users say it, and is read once. `store` is the id of this one;
    `with_texts` tells the server representatives too.
    """

    def __init__(
        self, given: str, count: Callable[[str], object], *, store: str, with_texts: bool
    ) -> None:
        self._store = store
        self._with_texts = with_texts
        self._address = address_of(given)
        self._server = IndexServer(self._address, self._connected, count)

    @property
    def server_state(self) -> str:
        return self._server.breaker.state

    def _connected(self, plan: Plan) -> CentroidIndex:
        from centroidkv.routing.chroma_index import open_server

        return open_server(self._address, plan, options=self._options())

    def _options(self) -> "CollectionOptions":
        from centroidkv.routing.chroma_collections import CollectionOptions

        return CollectionOptions(self._store, with_texts=self._with_texts)

    def open(self, plan: Plan) -> CentroidIndex:
        return self._server.open(plan)

    def drop(self, plan_id: str) -> None:
        from centroidkv.routing.chroma_index import drop_from_server

        self._server.ask(lambda: drop_from_server(self._address, plan_id, self._options()))

    def erase(self, namespace: str) -> None:
        from centroidkv.routing.chroma_index import erase_from_server

        self._server.ask(lambda: erase_from_server(self._address, namespace, self._options()))

    def close(self) -> None:
        self._server.close()
