"""Single flight: of all threads and processes on a store, one computes a prefix, others wait.

Owns who computes now, by lock files that the system releases when their holder dies. Does not know
what is computed, nor where it is kept.
"""

import logging
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from filelock import Timeout

from centroidkv.files import make_folder
from centroidkv.locks import StoreLock

_log = logging.getLogger("centroidkv")

# Of how many names the lock files are. Two prefixes of one name wait for each other in vain, for
# a bounded time; a file for each prefix would fill the folder.
NUM_NAMES = 1 << 14
LOOK_EVERY_S = 0.01
# How long a writer waits for the name of its next block, which one who looks may hold just now.
STEP_S = 0.1

__all__ = ["Flight", "SingleFlight", "Start"]


class Flight:
    """The right to compute a prefix, until its blocks are on disk or dropped.

    While they are written one after the other, it is the right to the first that is missing: who
    finds the ones before it asks for that one.
    """

    def __init__(self, lock: StoreLock, lock_of: Callable[[str], StoreLock]) -> None:
        self._lock: StoreLock | None = lock
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

    Nobody may ask for a second flight while holding one. Who holds one waits only for what lies
    behind it on its path, so no two wait for each other.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._has_warned = False
        self.patience_s = 1.0

    def start(self, block: str, *, path: Sequence[str] = (), wait_s: float) -> Start:
        """Ask to compute the prefix that begins with a missing block.

        Others may have more of the prompt, or less, and so begin elsewhere: of two that are on one
        `path`, the ids of the prompt's blocks in order, the one behind waits for the one before,
        unless it was there first. Without lock files, as on a full disk, everyone computes for
        himself.
        """
        end, has_waited = time.monotonic() + wait_s, False
        before, behind = self._around(block, path)
        try:
            lock = self._lock_of(block)
            while True:
                try:
                    lock.acquire(timeout=0)
                    if not any(map(self._is_flown, before)):
                        waited = self._wait_for(behind, end)
                        if waited is not None:
                            return Start(Flight(lock, self._lock_of), has_waited or waited)
                    lock.release()
                except Timeout:
                    pass
                has_waited = True
                left_s = end - time.monotonic()
                if left_s <= 0:
                    return Start(None, has_waited)
                time.sleep(min(LOOK_EVERY_S, left_s))
        except OSError as error:
            self._report(error)
            return Start(None, has_waited)

    def _around(self, block: str, path: Sequence[str]) -> tuple[list[str], list[str]]:
        """Return what lies before a block on a path, and what behind, but for its own name."""
        place = path.index(block) if block in path else len(path)
        own = _name(block)
        before = [other for other in path[:place] if _name(other) != own]
        behind = [other for other in path[place:] if _name(other) != own]
        return before, behind

    def _wait_for(self, blocks: Sequence[str], end: float) -> bool | None:
        """Wait until nobody computes any of some blocks; None when time is up."""
        has_waited = False
        for block in blocks:
            while self._is_flown(block):
                has_waited = True
                left_s = end - time.monotonic()
                if left_s <= 0:
                    return None
                time.sleep(min(LOOK_EVERY_S, left_s))
        return has_waited

    def _is_flown(self, block: str) -> bool:
        """Tell whether somebody computes what begins with a block; makes no file."""
        if not (self._folder / _name(block)).exists():
            return False
        lock = self._lock_of(block)
        try:
            lock.acquire(timeout=0)
        except Timeout:
            return True
        lock.release()
        return False

    def _lock_of(self, block: str) -> StoreLock:
        make_folder(self._folder)
        # Given back by the thread that writes behind the answers.
        return StoreLock(self._folder / _name(block), mode=0o600, thread_local=False)

    def _report(self, error: OSError) -> None:
        if not self._has_warned:
            self._has_warned = True
            _log.warning("prefixes may be computed twice, without locks: %s", error)


def _name(block: str) -> str:
    return f"{int(block[:8], 16) % NUM_NAMES:04x}.lock"
