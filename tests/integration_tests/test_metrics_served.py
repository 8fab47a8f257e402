"""Metrics over HTTP: to this machine alone, as long as the engine is open."""

import socket
import threading
import urllib.error
import urllib.request
from collections.abc import Callable
from pathlib import Path

import pytest

from centroidkv import Engine
from centroidkv.errors import ConfigError

Opening = Callable[..., Engine]


@pytest.fixture
def port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def scrape(port: int) -> str:
    with urllib.request.urlopen(f"http://127.0.0.1:{port}/metrics", timeout=10) as answer:
        return str(answer.read().decode())


def test_metrics_are_served_while_the_engine_is_open(open_engine: Opening, port: int) -> None:
    before = threading.active_count()
    engine = open_engine(metrics=port)
    engine.generate("Is it open? " * 20, max_tokens=1)
    assert 'centroidkv_requests_total{ended="answered",outcome="miss"' in scrape(port)
    assert "centroidkv_requests_total" in engine.metrics()
    engine.close()
    with pytest.raises(urllib.error.URLError):
        scrape(port)
    assert threading.active_count() == before
    open_engine(metrics=port)  # the port is free again


def test_a_port_that_is_taken_is_named_and_nothing_stays_open(
    open_engine: Opening, port: int, tmp_path: Path
) -> None:
    open_engine(tmp_path / "one", metrics=port)
    log = tmp_path / "log.jsonl"
    with pytest.raises(ConfigError, match=f"127.0.0.1:{port} .*choose another port"):
        open_engine(tmp_path / "other", metrics=port, json_logs=log)
    open_engine(tmp_path / "other").generate("Is it open?", max_tokens=1)


def test_scraping_while_requests_run(open_engine: Opening, port: int) -> None:
    engine = open_engine(metrics=port)
    wrong: list[BaseException] = []

    def look() -> None:
        try:
            for _ in range(20):
                scrape(port)
        except BaseException as error:  # noqa: BLE001 - shown below
            wrong.append(error)

    lookers = [threading.Thread(target=look) for _ in range(3)]
    for thread in lookers:
        thread.start()
    for number in range(15):
        stream = engine.stream(f"{number} " * 50, max_tokens=4)
        next(stream)  # and left to the garbage collector
        engine.generate(f"{number} " * 60, max_tokens=2)
    for thread in lookers:
        thread.join()
    assert wrong == []
    del stream
    seen = scrape(port)
    lines = [x for x in seen.splitlines() if x.startswith("centroidkv_requests_total")]
    for ended in ("answered", "abandoned"):
        assert sum(float(x.split()[-1]) for x in lines if f'ended="{ended}"' in x) == 15
