"""Whose turn it is: who waits shares the next forward, and no job is lost."""

import threading
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch

from centroidkv.models.arena import Arena, KVShape
from centroidkv.models.batching import MOST_TOKENS, Batcher, Job

SHAPE = KVShape(1, 1, 1, 1, torch.float32, torch.device("cpu"))


class Gate:
    """Runs jobs, the first forward not before it is opened."""

    def __init__(self, *, breaks: bool = False) -> None:
        self.opened = threading.Event()
        self.begun = threading.Event()
        self.batches: list[list[int]] = []
        self._breaks = breaks

    def run(self, jobs: Sequence[Job]) -> None:
        self.batches.append([j.token_ids[0] for j in jobs])
        if len(self.batches) == 1:
            self.begun.set()
            assert self.opened.wait(10)
            if self._breaks:
                raise KeyboardInterrupt
        for job in jobs:
            job.logits = torch.tensor([job.token_ids[0]])


def job(number: int, *, length: int = 1, apart: bool = False) -> Job:
    return Job([number] * length, Arena(SHAPE, 1), 1, apart)


def wait_until(condition: Callable[[], bool]) -> None:
    end = time.monotonic() + 10
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.001)


def test_a_sequence_may_be_closed_by_the_garbage_collector_within_the_lock() -> None:
    gate = Gate()
    gate.opened.set()
    batcher = Batcher(gate.run, lambda: 16)
    left = Arena(SHAPE, 1)
    batcher.join(left)

    class Collecting(Arena):
        """Stands for an allocation at which the collector runs."""

        def __hash__(self) -> int:
            batcher.leave(left)
            return id(self)

    one = Job([7], Collecting(SHAPE, 1), 1)
    thread = threading.Thread(target=batcher.submit, args=(one,), daemon=True)
    thread.start()
    thread.join(5)
    assert one.is_done
    assert batcher.num_open == 0


def run_behind(gate: Gate, jobs: Sequence[Job], *, most: int = 16) -> list[int]:
    """Submit a first job, then others while it runs, one after the other."""
    batcher = Batcher(gate.run, lambda: most)
    with ThreadPoolExecutor(1 + len(jobs)) as pool:
        first = pool.submit(batcher.submit, job(0))
        assert gate.begun.wait(10)
        waiting = []
        for number, one in enumerate(jobs, 1):
            waiting.append(pool.submit(batcher.submit, one))
            wait_until(lambda number=number: batcher.num_waiting == number)
        gate.opened.set()
        found = [int(w.result()) for w in waiting]
        if not first.exception():
            assert int(first.result()) == 0
        else:
            assert isinstance(first.exception(), KeyboardInterrupt)
    assert int(batcher.submit(job(9))) == 9, "nobody is left in the lead"
    return found


def test_who_waits_meanwhile_shares_the_next_forward() -> None:
    gate = Gate()
    assert run_behind(gate, [job(n) for n in (1, 2, 3)]) == [1, 2, 3]
    assert gate.batches == [[0], [1, 2, 3], [9]]


def test_no_more_than_may_share_one_and_in_the_order_they_came() -> None:
    gate = Gate()
    run_behind(gate, [job(n) for n in range(1, 6)], most=2)
    assert gate.batches == [[0], [1, 2], [3, 4], [5], [9]]


def test_a_long_prompt_is_not_run_with_others() -> None:
    gate = Gate()
    run_behind(gate, [job(1), job(2, length=MOST_TOKENS), job(3)])
    assert gate.batches == [[0], [1], [2], [3], [9]]


def test_what_is_apart_is_run_alone() -> None:
    gate = Gate()
    run_behind(gate, [job(1), job(2, apart=True), job(3)])
    assert gate.batches == [[0], [1], [2], [3], [9]]


@pytest.mark.filterwarnings("ignore::pytest.PytestUnhandledThreadExceptionWarning")
def test_a_leader_that_is_broken_off_takes_nobody_with_it() -> None:
    gate = Gate(breaks=True)
    assert run_behind(gate, [job(1), job(2)]) == [1, 2]
    assert gate.batches == [[0], [1, 2], [9]]


def test_nobody_waits_for_one_who_has_left() -> None:
    gate = Gate()
    gate.opened.set()
    batcher = Batcher(gate.run, lambda: 16)
    gone, stays = job(1), job(2)
    for one in (gone, stays):
        batcher.join(one.kv)
    batcher.submit(gone)
    batcher.leave(gone.kv)
    batcher.submit(stays)
    assert batcher.num_open == 1 and gate.batches == [[1], [2]]
