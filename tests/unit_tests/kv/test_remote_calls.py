"""Calls to a remote: bounded in time and in threads, and never an exception."""

import threading
import time

import pytest

from centroidkv.breaker import Breaker
from centroidkv.kv.remote_calls import RemoteCalls


def opened(breaker: Breaker | None = None, *, timeout_s: float = 0.2) -> RemoteCalls:
    return RemoteCalls(
        "test", timeout_s=timeout_s, retries=3, breaker=breaker or Breaker(), count=lambda _: None
    )


def test_a_call_that_hangs_is_made_once_while_another_is_repeated() -> None:
    let_go, made = threading.Event(), {"hanging": 0, "failing": 0}

    def hang() -> None:
        made["hanging"] += 1
        let_go.wait(10)

    def fail() -> None:
        made["failing"] += 1
        raise ConnectionResetError

    assert opened().run([hang, fail]) == [None, None]
    let_go.set()
    assert made["hanging"] == 1, "each more would be a thread that nobody ends"
    assert opened(timeout_s=10).run([fail]) == [None]
    assert made["failing"] == 1 + 4


def test_where_no_thread_can_be_had_there_is_no_answer(monkeypatch: pytest.MonkeyPatch) -> None:
    def start(_: threading.Thread) -> None:
        raise RuntimeError("can't start new thread")

    calls = opened()
    monkeypatch.setattr(threading.Thread, "start", start)
    assert calls.run_one(time.time) is None
    assert calls.faults == {"failures": 1}
