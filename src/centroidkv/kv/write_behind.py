"""Work that happens after the answer: a bounded queue and one thread.

Bounded in bytes, because what waits here holds KV. A job that does not fit is dropped and
counted: losing a write costs time later, waiting for it would cost time now.
"""

import logging
import queue
import threading
from collections.abc import Callable
from typing import TypeAlias

_log = logging.getLogger("centroidkv")

Job: TypeAlias = Callable[[], None]

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
        if wait and self._waiting_bytes + num_bytes > self.budget_bytes:
            self.flush()
        with self._lock:
            full = self._waiting_bytes > 0 and self._waiting_bytes + num_bytes > self.budget_bytes
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

    def flush(self) -> None:
        """Wait until everything submitted so far is done."""
        if self._thread is not None:
            self._jobs.join()

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
            _log.warning(
                "KV could not be stored (%s: %s); answers go on without it",
                type(error).__name__,
                error,
            )
