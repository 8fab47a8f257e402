"""A flush ends although others go on submitting, and the queue holds a bounded number of jobs."""

import threading
import time

from centroidkv.kv.write_behind import MOST_JOBS, WriteBehind


def test_a_flush_waits_for_what_came_before_it_alone() -> None:
    writer = WriteBehind(budget_bytes=1000)
    stop = threading.Event()

    def submit() -> None:
        while not stop.is_set():
            writer.submit(lambda: time.sleep(0.001))

    submitting = threading.Thread(target=submit)
    submitting.start()
    done: list[int] = []
    writer.submit(lambda: done.append(1), wait=True)
    writer.flush()
    assert done == [1] and submitting.is_alive()
    stop.set()
    submitting.join()
    writer.close()


def test_jobs_without_bytes_are_bounded_too() -> None:
    writer = WriteBehind(budget_bytes=1000)
    held = threading.Event()
    writer.submit(held.wait)  # type: ignore[arg-type]
    for _ in range(MOST_JOBS + 100):
        writer.submit(lambda: None)
    assert 99 <= writer.num_dropped <= 101
    held.set()
    writer.close()
