"""Work behind the answers: in order, once, bounded, and never the answer's problem."""

import errno
import threading

import pytest

from centroidkv.kv.write_behind import WriteBehind


@pytest.fixture
def writer():
    writer = WriteBehind(budget_bytes=100)
    yield writer
    writer.close()


def test_jobs_run_once_in_the_order_they_came(writer: WriteBehind) -> None:
    done: list[int] = []
    for i in range(50):
        assert writer.submit(lambda i=i: done.append(i))
    writer.flush()
    assert done == list(range(50))


def test_jobs_run_on_another_thread(writer: WriteBehind) -> None:
    seen: list[int] = []
    writer.submit(lambda: seen.append(threading.get_ident()))
    writer.flush()
    assert seen != [threading.get_ident()]


def test_a_job_that_does_not_fit_is_dropped_and_counted(writer: WriteBehind) -> None:
    go, done = threading.Event(), []
    assert writer.submit(lambda: bool(go.wait(10)), num_bytes=60)
    assert writer.submit(lambda: done.append("small"), num_bytes=40)
    assert not writer.submit(lambda: done.append("large"), num_bytes=1)
    assert writer.submit(lambda: done.append("free"))
    go.set()
    writer.flush()
    assert (done, writer.num_dropped) == (["small", "free"], 1)
    assert writer.submit(lambda: done.append("again"), num_bytes=100)
    writer.flush()
    assert done[-1] == "again"


def test_a_job_larger_than_the_queue_runs_when_nothing_waits(writer: WriteBehind) -> None:
    done: list[int] = []
    assert writer.submit(lambda: done.append(1), num_bytes=10**9)
    writer.flush()
    assert done == [1] and writer.num_dropped == 0


def test_a_failing_job_is_counted_and_the_next_ones_run(writer: WriteBehind, caplog) -> None:
    def fail() -> None:
        raise OSError(errno.ENOSPC, "no space left on device")

    done: list[int] = []
    for _ in range(3):
        writer.submit(fail, num_bytes=90)
        writer.flush()
    writer.submit(lambda: done.append(1), num_bytes=90)
    writer.flush()
    assert (done, writer.num_failed, writer.num_dropped) == ([1], 3, 0)
    assert [r.message.count("no space left") for r in caplog.records] == [1]


def test_closing_finishes_all_jobs() -> None:
    writer, done = WriteBehind(budget_bytes=100), []
    for i in range(20):
        writer.submit(lambda i=i: done.append(i))
    writer.close()
    assert len(done) == 20
    writer.close()
    writer.flush()


def test_flushing_and_closing_without_work_return() -> None:
    writer = WriteBehind(budget_bytes=0)
    writer.flush()
    writer.close()


def test_many_threads_may_submit(writer: WriteBehind) -> None:
    done: list[int] = []
    threads = [
        threading.Thread(target=lambda: [writer.submit(lambda: done.append(1)) for _ in range(50)])
        for _ in range(4)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    writer.flush()
    assert len(done) == 200
