"""A server of centroid indexes: what could not be put there is put there later, by itself."""

import http.server
import threading
import time
from collections.abc import Callable, Iterator, Mapping

import pytest
from test_router import WatchedIndex, make_plan

from centroidkv.errors import IndexUnavailable
from centroidkv.routing.index_server import IndexServer, ServedIndex
from centroidkv.routing.plan import Plan
from centroidkv.server_address import address_of


class FaltersOnce(WatchedIndex):
    """An index on a server that fails to make one change."""

    has_failed = False

    def annotate(self, cluster: int, prefixes: Mapping[str, str]) -> None:
        if not self.has_failed:
            self.has_failed = True
            raise IndexUnavailable("timed out")
        super().annotate(cluster, prefixes)


class Notes(WatchedIndex):
    """An index into which a change comes while another one is made."""

    come: Callable[[], None] | None = None

    def annotate(self, cluster: int, prefixes: Mapping[str, str]) -> None:
        super().annotate(cluster, prefixes)
        if self.come is not None:
            come, self.come = self.come, None
            come()


@pytest.fixture
def url() -> Iterator[str]:
    with http.server.HTTPServer(("127.0.0.1", 0), http.server.BaseHTTPRequestHandler) as server:
        server.RequestHandlerClass.log_message = lambda *_: None  # type: ignore[method-assign]
        threading.Thread(target=server.serve_forever, args=(0.05,), daemon=True).start()
        yield f"http://127.0.0.1:{server.server_port}"
        server.shutdown()


def until(condition: Callable[[], bool]) -> bool:
    end = time.monotonic() + 5
    while not condition() and time.monotonic() < end:
        time.sleep(0.02)
    return condition()


def test_one_change_that_fails_is_made_behind_the_requests(url: str) -> None:
    index, counts = FaltersOnce(make_plan()), []
    server = IndexServer(address_of(url), lambda plan: index, counts.append)
    plan = make_plan()
    served = server.open(plan)
    with pytest.raises(IndexUnavailable):
        served.annotate(0, {"head": "block"})
    assert until(lambda: server.breaker.state == "closed")
    assert index.notes == {0: {"head": "block"}}
    assert served.nearest(plan.reduced()[2]) == 2
    assert counts == ["index_losses", "index_returns"]
    server.close()


@pytest.mark.parametrize("later", [0, 1], ids=["of the same cluster", "of another"])
def test_a_change_that_comes_while_an_index_is_taken_is_not_lost(url: str, later: int) -> None:
    index = Notes(make_plan())
    is_there = threading.Event()

    def connect(plan: Plan) -> WatchedIndex:
        if not is_there.is_set():
            raise IndexUnavailable("not yet")
        return index

    server = IndexServer(address_of(url), connect, lambda counter: None)
    served = server.open(make_plan())

    def annotate(cluster: int, block: str) -> None:
        with pytest.raises(IndexUnavailable):
            served.annotate(cluster, {"head": block})

    index.come = lambda: annotate(later, "the later block")
    annotate(0, "the first block")
    is_there.set()
    assert until(lambda: server.breaker.state == "closed")
    expected = {0: {"head": "the first block"}} | {later: {"head": "the later block"}}
    assert index.notes == expected
    server.close()


def test_each_loss_is_told_once_with_its_cause(url: str, caplog: pytest.LogCaptureFixture) -> None:
    cause = ["HTTP 401 Unauthorized"]

    def connect(plan: Plan) -> WatchedIndex:
        if cause:
            raise IndexUnavailable(cause[0])
        return index

    index = FaltersOnce(make_plan())
    server = IndexServer(address_of(url), connect, lambda counter: None)
    served = server.open(make_plan())
    time.sleep(2)  # some tries
    assert caplog.text.count("HTTP 401 Unauthorized") == 1
    assert url in caplog.text
    cause.clear()
    assert until(lambda: server.breaker.state == "closed")
    with pytest.raises(IndexUnavailable):
        served.annotate(0, {"head": "block"})
    assert caplog.text.count("is left alone, and tried again") == 2
    assert caplog.text.count("timed out") == 1
    server.close()


def test_a_server_that_is_not_there_is_told_of_with_its_port(
    caplog: pytest.LogCaptureFixture,
) -> None:
    given = "http://someone:hunter2@127.0.0.1:9"
    server = IndexServer(address_of(given), lambda plan: WatchedIndex(plan), lambda counter: None)
    server.open(make_plan())
    assert "http://127.0.0.1:9: ConnectionRefusedError" in caplog.text
    assert "hunter2" not in caplog.text
    server.close()


def test_an_index_that_cannot_be_taken_is_closed(url: str) -> None:
    class Refused(Notes):
        num_closed = 0

        def annotate(self, cluster: int, prefixes: Mapping[str, str]) -> None:
            raise IndexUnavailable("HTTP 403 Forbidden")

        def close(self) -> None:
            self.num_closed += 1

    made: list[Refused] = []

    def connect(plan: Plan) -> WatchedIndex:
        made.append(Refused(plan))
        return made[-1]

    server = IndexServer(address_of(url), connect, lambda counter: None)
    served = server.open(make_plan())
    with pytest.raises(IndexUnavailable):
        served.annotate(0, {"head": "block"})
    assert until(lambda: len(made) > 3)
    server.close()
    assert [index.num_closed for index in made[1:]] == [1] * (len(made) - 1)


def test_a_plan_that_is_opened_while_the_server_returns_is_put_there(url: str) -> None:
    is_there, comes = threading.Event(), threading.Event()
    opened: list[ServedIndex] = []

    def connect(plan: Plan) -> WatchedIndex:
        if not is_there.is_set():
            raise IndexUnavailable("not yet")
        if not comes.is_set():
            comes.set()
            opened.append(server.open(make_plan()))  # between two looks at what is served
        return Notes(plan)

    server = IndexServer(address_of(url), connect, lambda counter: None)
    server.open(make_plan())
    is_there.set()
    assert until(lambda: server.breaker.state == "closed")
    assert opened[0].nearest(make_plan().reduced()[2]) == 2
    server.close()
