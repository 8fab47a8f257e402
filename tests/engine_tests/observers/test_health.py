"""The health of an open store: what routes, what is left alone, what waits."""

from collections.abc import Callable
from pathlib import Path

from centroidkv import Engine, Passage

Opening = Callable[..., Engine]


def ask(engine: Engine) -> None:
    """Found a cluster by one question."""
    shown = engine.compose(engine.route("who is it?"), [Passage("p1", "It is nobody. " * 10)])
    engine.generate("\n".join([*(p.text for p in shown), "who is it?"]), max_tokens=2)
    engine.flush()


def test_stats_tell_the_health_of_an_open_store(open_engine: Opening) -> None:
    engine = open_engine(near_misses=1)
    health = engine.stats().health
    assert health.routes_by is None
    assert health.remote_breaker is None
    assert (health.running, health.waiting, health.queued_writes, health.queued_bytes) == (0,) * 4
    ask(engine)
    engine.route("who is it?")
    assert engine.stats().health.routes_by == "chroma"


def test_a_remote_that_is_left_alone_shows(open_engine: Opening, tmp_path: Path) -> None:
    engine = open_engine(metrics=True, remote=f"file://{tmp_path / 'remote'}")
    remote = engine.store.blocks.remote
    assert remote is not None
    assert engine.stats().health.remote_breaker == "closed"
    for _ in range(3):
        remote.calls.breaker.failed()
    shown = engine.metrics()
    for state, now in (("closed", 0), ("open", 1), ("half-open", 0)):
        assert f'centroidkv_remote_breaker{{state="{state}"}} {now}.0' in shown
    assert engine.stats().health.remote_breaker == "open"


def test_a_chroma_server_that_is_left_alone_shows_as_a_metric(open_engine: Opening) -> None:
    engine = open_engine(metrics=True, near_misses=1, chroma="http://127.0.0.1:9")
    assert 'centroidkv_chroma_server{state="closed"} 1.0' in engine.metrics()
    ask(engine)
    assert engine.stats().chroma_server != "closed"
    assert 'centroidkv_chroma_server{state="closed"} 0.0' in engine.metrics()


def test_a_store_that_is_only_read_is_routed_by_memory(open_engine: Opening) -> None:
    engine = open_engine(near_misses=1)
    ask(engine)
    reader = open_engine(read_only=True)
    assert reader.stats().health.routes_by == "memory"
