"""Who is alone is alone, and waits for no more than those who were there before."""

import threading
from concurrent.futures import ThreadPoolExecutor

import pytest

from centroidkv.routing.exclusion import Exclusion

WAIT_S = 10


def test_nobody_is_there_beside_one_who_is_alone() -> None:
    exclusion, lock = Exclusion(), threading.Lock()
    present: set[str] = set()
    meetings: list[set[str]] = []

    def come(name: str) -> None:
        with exclusion.alone() if name.startswith("alone") else exclusion.together():
            with lock:
                present.add(name)
                meetings.append(set(present))
            with lock:
                present.remove(name)

    names = [f"{'alone' if n % 5 == 0 else 'one of many'} {n}" for n in range(500)]
    with ThreadPoolExecutor(8) as pool:
        list(pool.map(come, names))
    assert len(meetings) == 500
    assert all(len(met) == 1 for met in meetings if any(n.startswith("alone") for n in met))


def test_many_are_there_at_once() -> None:
    exclusion = Exclusion()
    all_there = threading.Barrier(4)

    def come() -> None:
        with exclusion.together():
            all_there.wait(WAIT_S)

    with ThreadPoolExecutor(4) as pool:
        for one in [pool.submit(come) for _ in range(4)]:
            one.result()


def test_who_comes_later_lets_go_first_who_waits_to_be_alone() -> None:
    exclusion, order = Exclusion(), []  # type: ignore[var-annotated]
    may_leave, waits = threading.Event(), threading.Event()

    def first() -> None:
        with exclusion.together():
            waits.set()
            may_leave.wait(WAIT_S)

    def come(name: str) -> None:
        with exclusion.alone() if name == "alone" else exclusion.together():
            order.append(name)

    with ThreadPoolExecutor(3) as pool:
        pool.submit(first)
        assert waits.wait(WAIT_S)
        alone = pool.submit(come, "alone")
        while not exclusion.is_awaited:
            pass
        later = pool.submit(come, "later")
        may_leave.set()
        alone.result(), later.result()
    assert order == ["alone", "later"]


def test_what_fails_inside_lets_the_next_in() -> None:
    exclusion = Exclusion()
    for way in (exclusion.together, exclusion.alone, exclusion.together):
        with pytest.raises(ValueError, match="inside"), way():
            raise ValueError("inside")
    with exclusion.alone():
        pass


def test_who_cannot_be_alone_in_time_is_told_and_keeps_nobody_out() -> None:
    calls = Exclusion()
    with calls.together():
        with pytest.raises(TimeoutError), calls.alone(0.01):
            raise AssertionError("somebody was there")
        assert not calls.is_awaited
        with calls.together():
            pass
    with calls.alone(0.01):
        assert calls.is_awaited
