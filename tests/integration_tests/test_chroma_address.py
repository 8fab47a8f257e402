"""A real Chroma server behind a proxy that asks for credentials and a path prefix."""

import logging
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from centroidkv import Engine
from chroma_process import ChromaProcess
from guarded_proxy import GuardedProxy
from word_bank import QUESTIONS, ask, build_and_warm

PASSWORD = "hunter2@:x"
GIVEN = "hunter2%40%3Ax"


@pytest.fixture
def proxy(tmp_path: Path) -> Iterator[GuardedProxy]:
    with (
        ChromaProcess(tmp_path / "server") as server,
        GuardedProxy(server.url, prefix="/team/kv", user="someone", password=PASSWORD) as found,
    ):
        yield found


def test_credentials_and_a_prefix_reach_the_server_from_every_session(
    open_engine: Callable[..., Engine],
    proxy: GuardedProxy,
    caplog: pytest.LogCaptureFixture,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    caplog.set_level(logging.DEBUG)
    url = f"http://someone:{GIVEN}@127.0.0.1:{proxy.port}/team/kv"
    engine = open_engine(chroma=url)
    build_and_warm(engine)
    assert engine.route(QUESTIONS[0]).cluster is not None
    assert engine.router.routes_by == "chroma"
    assert engine.router.num_index_failures == 0
    assert engine.router.faults() == []
    assert ask(engine, "please block my lost card").usage.outcome == "hit"
    assert proxy.refused == [], "no request went without its prefix or credentials"
    assert proxy.num_passed > 5
    told = [str(engine.stats()), repr(engine.config), caplog.text]
    assert not any("hunter2" in text for text in told)
    engine.close()
    monkeypatch.setenv("CHROMA_AT", url)
    again = open_engine(chroma="env:CHROMA_AT")
    assert again.route(QUESTIONS[0]).cluster is not None
    assert again.router.routes_by == "chroma"


def test_wrong_credentials_are_told_of_and_never_shown(
    open_engine: Callable[..., Engine], proxy: GuardedProxy, caplog: pytest.LogCaptureFixture
) -> None:
    engine = open_engine(chroma=f"http://someone:wrong-one@127.0.0.1:{proxy.port}/team/kv")
    build_and_warm(engine)
    assert engine.route(QUESTIONS[0]).cluster is not None
    assert engine.router.routes_by == "memory"
    assert "HTTP 401 Unauthorized" in caplog.text
    assert "wrong-one" not in caplog.text
