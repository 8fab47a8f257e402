"""Places for requests: so many run, so many wait, one more is told so at once."""

import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor

import pytest

from centroidkv import Engine
from centroidkv.errors import GenerationTimeout, QueueFull
from centroidkv.serving.queueing import IDLE_S, RequestQueue


def wait_until(condition: Callable[[], bool]) -> None:
    end = time.monotonic() + 10
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.001)


def numbers() -> Iterator[int]:
    yield from range(3)


def test_so_many_run_and_the_next_waits_for_the_first_to_end() -> None:
    queue = RequestQueue(max_running=2, max_waiting=1)
    first, second = queue.enter(), queue.enter()
    with ThreadPoolExecutor(1) as pool:
        third = pool.submit(queue.enter)
        wait_until(lambda: queue.num_waiting == 1)
        with pytest.raises(QueueFull, match="2 requests run and 1 wait already; ask again"):
            queue.enter()
        assert not third.done()
        queue.leave(first)
        assert third.result() is not None
    assert second is not None and (queue.num_running, queue.num_waiting) == (2, 0)


def test_nobody_overtakes() -> None:
    queue = RequestQueue(max_running=1, max_waiting=8)
    held, came = queue.enter(), []

    def come(number: int) -> None:
        with queue.enter():
            came.append(number)

    threads = []
    for number in range(8):
        threads.append(threading.Thread(target=come, args=(number,)))
        threads[-1].start()
        wait_until(lambda: queue.num_waiting == len(threads))
    queue.leave(held)
    for thread in threads:
        thread.join()
    assert came == list(range(8))


def test_waiting_ends_with_the_time() -> None:
    queue = RequestQueue(max_running=1, max_waiting=1)
    queue.enter()
    assert queue.enter(timeout_s=0.01) is None
    assert queue.enter(timeout_s=0) is None
    assert queue.num_waiting == 0


def test_an_answer_that_is_not_read_on_does_not_keep_others_waiting() -> None:
    queue = RequestQueue(max_running=1, max_waiting=1)
    with queue.enter() as place:
        answer = place.watch(numbers())
        assert next(answer) == 0
        with queue.enter(timeout_s=100 * IDLE_S) as other:
            assert other is not None
            assert list(answer) == [1, 2], "and it goes on"
    assert queue.num_running == 0


def test_an_answer_left_early_is_closed_at_once() -> None:
    ended = []

    def pieces() -> Iterator[int]:
        try:
            yield 1
        finally:
            ended.append(True)

    with RequestQueue(max_running=1, max_waiting=0).enter() as place:
        answer = place.watch(pieces())
        next(answer)
        answer.close()
        assert ended


# in the engine


def test_one_request_too_many_is_refused(open_engine: Callable[..., Engine]) -> None:
    engine = open_engine(max_running=1, max_waiting=0)
    with ThreadPoolExecutor(1) as pool:
        running = pool.submit(engine.generate, "a long story", max_tokens=400)
        wait_until(lambda: engine.store.requests.num_running == 1)
        with pytest.raises(QueueFull):
            engine.generate("another", max_tokens=1)
        running.result()
    assert engine.generate("another", max_tokens=1).token_ids
    assert engine.store.requests.num_running == 0


def test_the_time_of_a_request_runs_while_it_waits(open_engine: Callable[..., Engine]) -> None:
    engine = open_engine(max_running=1)
    with ThreadPoolExecutor(1) as pool:
        running = pool.submit(engine.generate, "a long story", max_tokens=400)
        wait_until(lambda: engine.store.requests.num_running == 1)
        with pytest.raises(GenerationTimeout, match="0 tokens"):
            engine.generate("another", max_tokens=1, timeout_s=0.01)
        running.result()


def test_tenants_share_the_places(open_engine: Callable[..., Engine]) -> None:
    engine = open_engine()
    assert engine.for_tenant("other").store.requests is engine.store.requests


def test_streams_that_nobody_reads_do_not_stop_the_engine(
    open_engine: Callable[..., Engine],
) -> None:
    engine = open_engine(max_running=2)
    idle = [engine.stream(f"a long story {n}", max_tokens=50) for n in range(5)]
    first = [next(stream).text for stream in idle]
    assert engine.generate("another", max_tokens=3).token_ids
    for text, stream, number in zip(first, idle, range(5), strict=True):
        rest = "".join(chunk.text for chunk in stream)
        alone = engine.generate(f"a long story {number}", max_tokens=50, reuse="off")
        assert text + rest == alone.text
