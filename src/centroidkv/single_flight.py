"""Single flight: of all threads and processes on a store, one computes a prefix, others wait.

Owns who computes now, by lock files that the system releases when their holder dies. Does not know
what is computed, nor where it is kept.
"""

import logging
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from filelock import FileLock, Timeout

_log = logging.getLogger("centroidkv")

# Of how many names the lock files are. Two prefixes of one name wait for each other in vain, for
# a bounded time; a file for each prefix would fill the folder.
NUM_NAMES = 4096
LOOK_EVERY_S = 0.01
# How long a writer waits for the name of its next block, which one who looks may hold just now.
STEP_S = 0.1

__all__ = ["Flight", "SingleFlight", "Start"]


class Flight:
    """The right to compute a prefix, until its blocks are on disk or dropped.

    While they are written one after the other, it is the right to the first that is missing: who
    finds the ones before it asks for that one.
    """

    def __init__(self, lock: FileLock, lock_of: Callable[[str], FileLock]) -> None:
        self._lock: FileLock | None = lock
        self._lock_of = lock_of
        self._once = threading.Lock()

    @contextmanager
    def writing(self, following: str | None) -> Iterator[None]:
        """Hold the block behind the one that the body writes, and then no longer that one."""
        ahead = self._lock_of(following) if following is not None else None
        try:
            if ahead is not None:
                ahead.acquire(timeout=STEP_S, poll_interval=LOOK_EVERY_S / 4)
        except (Timeout, OSError):  # held by another prefix of the same name, say
            ahead = None
        yield
        with self._once:
            if self._lock is not None and ahead is not None:
                self._lock.release()
                self._lock = ahead

    def land(self) -> None:
        """Let others look for the prefix. Safe to call twice, and from any thread."""
        with self._once:
            lock, self._lock = self._lock, None
        if lock is not None:
            lock.release()


@dataclass(frozen=True, slots=True)
class Start:
    """What came of asking for a prefix: a flight, unless time was up; and whether one was ahead.

    Who has waited looks for the prefix again before computing it.
    """

    flight: Flight | None
    has_waited: bool

    def land(self) -> None:
        """Give the flight back, if there is one."""
        if self.flight is not None:
            self.flight.land()


class SingleFlight:
    """Gives out flights over one folder of lock files. Safe for many threads and processes.

    Nobody may ask for a second flight while holding one, so no two wait for each other.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._has_warned = False
        self.patience_s = 1.0

    def start(self, block: str, *, wait_s: float) -> Start:
        """Ask to compute the prefix that begins with a missing block.

        Without lock files, as on a full disk, everyone computes for himself.
        """
        end, has_waited = time.monotonic() + wait_s, False
        try:
            lock = self._lock_of(block)
            while True:
                try:
                    lock.acquire(timeout=0)
                    return Start(Flight(lock, self._lock_of), has_waited)
                except Timeout:
                    has_waited = True
                left_s = end - time.monotonic()
                if left_s <= 0:
                    return Start(None, has_waited)
                time.sleep(min(LOOK_EVERY_S, left_s))
        except OSError as error:
            self._report(error)
            return Start(None, has_waited)

    def _lock_of(self, block: str) -> FileLock:
        self._folder.mkdir(mode=0o700, exist_ok=True)
        name = f"{int(block[:8], 16) % NUM_NAMES:03x}.lock"
        # Given back by the thread that writes behind the answers.
        return FileLock(self._folder / name, mode=0o600, thread_local=False)

    def _report(self, error: OSError) -> None:
        if not self._has_warned:
            self._has_warned = True
            _log.warning("prefixes may be computed twice, without locks: %s", error)
