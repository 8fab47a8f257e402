"""Work that happens after the answer: a bounded queue and one thread.

Bounded in bytes, because what waits here holds KV, and in number, because every job holds
something. A job that does not fit is dropped and counted: losing a write costs time later, waiting
for it would cost time now.
"""

import logging
import queue
import threading
from collections.abc import Callable
from typing import TypeAlias

from centroidkv.error_kinds import kind_of

_log = logging.getLogger("centroidkv")

Job: TypeAlias = Callable[[], None]

# So many are some megabytes of prompts and counts.
MOST_JOBS = 1024
# A thread that ends for good leaves nobody waiting for it.
LOOK_EVERY_S = 1.0

__all__ = ["WriteBehind"]


class WriteBehind:
    """Runs jobs in the order they were submitted, each once."""

    def __init__(self, *, budget_bytes: int) -> None:
        self.budget_bytes = budget_bytes
        self.num_failed = 0
        self.num_dropped = 0
        self._waiting_bytes = 0
        self._lock = threading.RLock()  # the garbage collector may end an answer
        self._jobs: queue.Queue[tuple[Job, int] | None] = queue.Queue()
        self._thread: threading.Thread | None = None
        self._warned = False

    @property
    def num_waiting(self) -> int:
        """How many jobs are not done."""
        return self._jobs.unfinished_tasks

    @property
    def waiting_bytes(self) -> int:
        """Bytes that these jobs hold."""
        return self._waiting_bytes

    def submit(self, job: Job, *, num_bytes: int = 0, wait: bool = False) -> bool:
        """Queue a job that holds `num_bytes`.

        When the queue is full, wait for room, or drop the job and return False.
        """
        if wait and self._is_full(num_bytes):
            self.flush()
        with self._lock:
            full = self._is_full(num_bytes)
            if full and not wait:
                self.num_dropped += 1
                return False
            self._waiting_bytes += num_bytes
            if self._thread is None:
                self._thread = threading.Thread(
                    target=self._run, name="centroidkv-write-behind", daemon=True
                )
                self._thread.start()
        self._jobs.put((job, num_bytes))
        return True

    def _is_full(self, num_bytes: int) -> bool:
        is_over = self._waiting_bytes + num_bytes > self.budget_bytes
        return (self._waiting_bytes > 0 and is_over) or self._jobs.qsize() >= MOST_JOBS

    def flush(self) -> None:
        """Wait until everything submitted so far is done, whatever is submitted meanwhile."""
        thread = self._thread
        if thread is None:
            return
        done = threading.Event()
        self._jobs.put((done.set, 0))
        while not done.wait(LOOK_EVERY_S) and thread.is_alive():
            pass

    def close(self) -> None:
        """Finish all jobs and stop the thread."""
        if self._thread is not None:
            self._jobs.put(None)
            self._thread.join()
            self._thread = None

    def _run(self) -> None:
        while (item := self._jobs.get()) is not None:
            job, num_bytes = item
            try:
                job()
            except Exception as error:  # noqa: BLE001 - whatever it is, it is not the answer's
                self._report(error)
            finally:
                with self._lock:
                    self._waiting_bytes -= num_bytes
                self._jobs.task_done()
        self._jobs.task_done()

    def _report(self, error: Exception) -> None:
        """Count a failed job; warn once, since a full disk would fail every one."""
        self.num_failed += 1
        if not self._warned:
            self._warned = True
            _log.warning("KV could not be stored (%s); answers go on without it", kind_of(error))
