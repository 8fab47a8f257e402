"""Centroid indexes on a server that may hang, restart, lose what it held, or be gone.

Owns when the server is asked, and how it is found again: what fails a few times is left alone, and
a thread tries it behind the requests, which meanwhile cost nothing. What changed in the absence is
put there at the return. Knows no server's protocol, and not what requests do without an index.
"""

import contextlib
import http.client
import logging
import random
import threading
from collections.abc import Callable, Mapping, Sequence
from typing import TypeVar

from centroidkv.breaker import Breaker
from centroidkv.errors import IndexClosed, IndexUnavailable
from centroidkv.protocols import CentroidIndex
from centroidkv.routing.plan import Plan
from centroidkv.server_address import ServerAddress
from centroidkv.types import Cluster, FloatArray

_log = logging.getLogger("centroidkv")

T = TypeVar("T")
MOST_FAILURES = 2
# Tried again after half a second, then after twice as long each time, up to this.
LONGEST_PAUSE_S = 2.0
LOOK_EVERY_S = 0.25
# How long opening a plan may keep its engine; longer uploads go on behind the requests.
OPEN_S = 5.0
PROBE_S = 1.0

__all__ = ["IndexServer", "ServedIndex", "require_answer"]


def require_answer(address: ServerAddress, *, timeout_s: float = PROBE_S) -> None:
    """Ask whether anything speaks HTTP at an address, whatever it says.

    Raises:
        IndexUnavailable: Nothing does; the message says what came instead.
    """
    kind = http.client.HTTPSConnection if address.scheme == "https" else http.client.HTTPConnection
    connection = kind(address.host, address.port, timeout=timeout_s)
    try:
        connection.request("GET", address.prefix or "/", headers=address.headers)
        connection.getresponse()
    except (OSError, UnicodeError, http.client.HTTPException) as error:
        raise IndexUnavailable(f"nothing answers at {address.url}: {error!r}") from error
    finally:
        connection.close()


class IndexServer:
    """One server for the indexes of all plans and tenants of a store. Safe for many threads.

    Args:
        address: Where it is.
        connect: Opens, or makes, the index of a plan there; each call in it has a time limit.
        count: Notes by a counter's name that the server was lost, and that it came back.
    """

    def __init__(
        self,
        address: ServerAddress,
        connect: Callable[[Plan], CentroidIndex],
        count: Callable[[str], object],
    ) -> None:
        self.url = address.url
        self._address = address
        self.breaker = Breaker(most_failures=MOST_FAILURES, pause_s=0.5, longest_s=LONGEST_PAUSE_S)
        self._connect = connect
        self._count = count
        self._served: list[ServedIndex] = []
        self._lock = threading.Lock()
        self._reviver: threading.Thread | None = None
        self._closing = threading.Event()

    def open(self, plan: Plan) -> "ServedIndex":
        """Return the index of a plan, which is on the server now or as soon as that answers."""
        served = ServedIndex(self, plan)
        with self._lock:
            self._served.append(served)
        if self.breaker.state == "closed":
            opener = threading.Thread(
                target=self._open_first, args=(served,), name="centroidkv-index", daemon=True
            )
            opener.start()
            opener.join(OPEN_S)
        return served

    def _open_first(self, served: "ServedIndex") -> None:
        try:
            self._reopen(served)
        except IndexUnavailable as error:
            self._lose(error)

    def _reopen(self, served: "ServedIndex") -> None:
        # Asked first: the cheapest way to know that nothing is there.
        require_answer(self._address)
        index = self._connect(served.plan)
        try:
            served.use(index)
        except BaseException:
            if not served.has(index):
                with contextlib.suppress(IndexUnavailable):
                    index.close()
            raise

    def ask(self, job: Callable[[], T]) -> T:
        """Ask the server, unless it is left alone.

        Raises:
            IndexUnavailable: It is, or does not answer.
        """
        self.require()
        try:
            found = job()
        except IndexClosed:  # which says nothing about the server
            raise
        except IndexUnavailable as error:
            self.breaker.failed()
            if self.breaker.state != "closed":
                self._lose(error)
            raise
        self.breaker.succeeded()
        return found

    def write(self, job: Callable[[], None]) -> None:
        """Ask for a change, which is owed until it is made.

        One that fails is tried again by the thread that looks for the server, at its return.

        Raises:
            IndexUnavailable: As of `ask`.
        """
        try:
            self.ask(job)
        except IndexClosed:
            raise
        except IndexUnavailable as error:
            self._lose(error)
            raise

    def require(self) -> None:
        """Refuse what would ask a server that is left alone.

        Raises:
            IndexUnavailable: It is left alone.
        """
        if self.breaker.state != "closed":
            raise IndexUnavailable(f"{self.url} does not answer; it is tried again now and then")

    def _lose(self, cause: IndexUnavailable) -> None:
        """Leave the server alone, say why, and let a thread look for it; once a loss."""
        with self._lock:
            while self.breaker.state == "closed":
                self.breaker.failed()
            if self._reviver is not None or self._closing.is_set():
                return
            self._reviver = threading.Thread(
                target=self._revive, name="centroidkv-index", daemon=True
            )
            self._reviver.start()
        _log.warning(
            "the Chroma server %s is left alone, and tried again behind the requests: %s",
            self.url,
            cause,
        )
        self._count("index_losses")

    def _revive(self) -> None:
        while not self._closing.wait(LOOK_EVERY_S * (0.5 + random.random())):  # noqa: S311
            if not self.breaker.allows():
                continue
            with self._lock:
                served = list(self._served)
            try:
                for one in served:
                    self._reopen(one)
            except IndexUnavailable as error:
                _log.debug("%s: %s", self.url, error)
                self.breaker.failed()
                continue
            with self._lock:
                if any(one not in served for one in self._served):
                    continue  # opened meanwhile, and left to this thread
                self._reviver = None
                self.breaker.succeeded()
            self._count("index_returns")
            return

    def leave(self, served: "ServedIndex") -> None:
        """Serve a plan no longer."""
        with self._lock:
            self._served.remove(served)

    def close(self) -> None:
        """Look for the server no longer; a call under way is not waited for."""
        self._closing.set()
        reviver = self._reviver
        if reviver is not None:
            reviver.join(PROBE_S)


class ServedIndex:
    """The index of one plan on a server. See `CentroidIndex` for the contract.

    Raises:
        IndexUnavailable: From every method but `close`, while the server does not answer.
        IndexClosed: From every method but `close`, behind that.
    """

    def __init__(self, server: IndexServer, plan: Plan) -> None:
        self.plan = plan
        self._server = server
        self._index: CentroidIndex | None = None
        self._lock = threading.Lock()
        self._is_closed = False
        self._owed: dict[int, tuple[Cluster, FloatArray]] = {}
        self._owed_notes: dict[int, dict[str, str]] = {}

    def use(self, index: CentroidIndex) -> None:
        """Take an index that has just been opened, and put there what is owed.

        Raises:
            IndexUnavailable: The server is gone again.
        """
        while True:
            with self._lock:
                owed, notes = list(self._owed.items()), list(self._owed_notes.items())
                if not owed and not notes:
                    # Under one lock: what comes from here on is put there by whoever brings it.
                    old, self._index = self._index, index
                    is_late = self._is_closed
                    break
            for number, change in owed:
                cluster, reduced = change
                index.put([cluster], reduced[None])
                self._paid(self._owed, number, change)
            for number, prefixes in notes:
                index.annotate(number, prefixes)
                self._paid(self._owed_notes, number, prefixes)
        if old is not None:
            old.close()
        if is_late:
            index.close()

    def has(self, index: CentroidIndex) -> bool:
        """Tell whether an index was taken."""
        return self._index is index

    def _opened(self) -> CentroidIndex:
        index = self._index
        if self._is_closed:
            raise IndexClosed(f"the index of plan {self.plan.id} was closed meanwhile")
        if index is None:
            self._server.require()
            raise IndexUnavailable(f"the centroids are not yet in {self._server.url}")
        return index

    def nearest(self, vector: FloatArray, domain: str | None = None) -> int | None:
        index = self._opened()
        return self._server.ask(lambda: index.nearest(vector, domain))

    def put(self, clusters: Sequence[Cluster], reduced: FloatArray) -> None:
        with self._lock:
            owed = {c.id: (c, row) for c, row in zip(clusters, reduced, strict=True)}
            self._owed.update(owed)
        index = self._opened()
        self._server.write(lambda: index.put(clusters, reduced))
        for number, change in owed.items():
            self._paid(self._owed, number, change)

    def annotate(self, cluster: int, prefixes: Mapping[str, str]) -> None:
        note = dict(prefixes)
        with self._lock:
            self._owed_notes[cluster] = note
        index = self._opened()
        self._server.write(lambda: index.annotate(cluster, note))
        self._paid(self._owed_notes, cluster, note)

    def _paid(self, owed: dict[int, T], number: int, change: T) -> None:
        """Strike a change off, unless another one of the same cluster came meanwhile."""
        with self._lock:
            if owed.get(number) is change:
                del owed[number]

    def faults(self, plan_vectors: FloatArray) -> list[str]:
        index = self._opened()
        return self._server.ask(lambda: index.faults(plan_vectors))

    def representatives(self) -> dict[str, str]:
        """Return the representative of each entry, as the server has it; {} if that is not told."""
        told = getattr(self._opened(), "representatives", None)
        return self._server.ask(told) if told is not None else {}

    def close(self) -> None:
        self._server.leave(self)
        with self._lock:
            self._is_closed, index, self._index = True, self._index, None
        if index is not None:
            index.close()
