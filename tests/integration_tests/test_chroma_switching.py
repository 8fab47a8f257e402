"""Plans change places under load: no request finds Chroma gone, and no loss is counted."""

import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from centroidkv import Engine
from chroma_process import ChromaProcess
from word_bank import QUESTIONS, search

SWITCHES = 6


@pytest.fixture(params=["embedded", "server"])
def chroma(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[str | None]:
    if request.param == "embedded":
        yield None
    else:
        with ChromaProcess(tmp_path / "server") as server:
            yield server.url


def test_a_request_that_routes_while_another_plan_is_put_in_force_finds_chroma(
    open_engine: Callable[..., Engine], chroma: str | None
) -> None:
    engine = open_engine(chroma=chroma, keep_versions=1)
    engine.build(questions=QUESTIONS, retriever=search, num_clusters=3, pca_dim=8)
    stop, routed, problems = threading.Event(), [0] * 4, list[str]()

    def route(number: int) -> None:
        while not stop.is_set():
            for question in QUESTIONS:
                if engine.route(question).cluster is None:
                    problems.append(question)
                routed[number] += 1

    threads = [threading.Thread(target=route, args=(n,)) for n in range(len(routed))]
    for thread in threads:
        thread.start()
    for number in range(SWITCHES):
        engine.build(questions=QUESTIONS, retriever=search, num_clusters=2 + number % 2, pca_dim=8)
    stop.set()
    for thread in threads:
        thread.join(30)
    assert problems == [] and min(routed) > len(QUESTIONS)
    assert engine.router.num_index_failures == 0
    assert engine.stats().counters.get("index_losses", 0) == 0
    assert engine.router.routes_by == "chroma"
