"""Who may compute now: a bounded number of requests, and a bounded queue before it.

Owns places, not turns: the forwards of those who have a place are batched by the model. A place
is for being computed. An answer that is not read on, as by a slow client or an idle generator,
keeps its KV and its right to go on, but others need not wait for it: so no two requests can wait
for each other, also where few threads serve many of them.
"""

import threading
import time
from collections.abc import Generator, Iterator
from contextlib import closing
from typing import TypeVar

from centroidkv.errors import EngineClosing, QueueFull

__all__ = ["Place", "RequestQueue"]

T = TypeVar("T")
# A request that nobody reads on for so long leaves its place to others.
IDLE_S = 0.1


class Place:
    """The right of one request to be computed; a context manager, which gives it back."""

    def __init__(self, queue: "RequestQueue") -> None:
        self._queue = queue
        self.idle_since: float | None = None

    def watch(self, pieces: Generator[T]) -> Iterator[T]:
        """Yield from an answer, noting when nobody reads on."""
        with closing(pieces):
            for piece in pieces:
                self.idle_since = time.monotonic()
                yield piece
                self.idle_since = None

    def __enter__(self) -> "Place":
        return self

    def __exit__(self, *_: object) -> None:
        self._queue.leave(self)


class RequestQueue:
    """Gives places to requests, first come, first served. Safe for many threads.

    Args:
        max_running: How many may be computed at the same time.
        max_waiting: How many may wait for a place.
    """

    def __init__(self, *, max_running: int, max_waiting: int) -> None:
        self.max_running = max_running
        self.max_waiting = max_waiting
        self.num_refused = 0
        self._running: set[Place] = set()
        self._waiting: list[Place] = []
        self._changed = threading.Condition()
        self._is_shut = False
        self._is_cancelled = False

    @property
    def num_running(self) -> int:
        """How many requests have a place."""
        return len(self._running)

    @property
    def num_waiting(self) -> int:
        """How many requests wait for a place."""
        return len(self._waiting)

    def enter(self, *, timeout_s: float | None = None) -> Place | None:
        """Wait for a place and return it; None when there was none within `timeout_s` seconds.

        Raises:
            QueueFull: As many wait already as may.
            EngineClosing: Nobody is let in any more.
        """
        end = None if timeout_s is None else time.monotonic() + timeout_s
        place = Place(self)
        with self._changed:
            self._require_open()
            if not self._waiting and self._has_room():
                self._running.add(place)
                return place
            if len(self._waiting) >= self.max_waiting:
                self.num_refused += 1
                raise QueueFull(max_running=self.max_running, max_waiting=self.max_waiting)
            self._waiting.append(place)
            try:
                while self._waiting[0] is not place or not self._has_room():
                    left = IDLE_S if end is None else min(IDLE_S, end - time.monotonic())
                    if left <= 0:
                        return None
                    # Nobody tells when an answer is not read on, so look again now and then.
                    self._changed.wait(left)
                    self._require_open()
                self._running.add(place)
            finally:
                self._waiting.remove(place)
                self._changed.notify_all()
        return place

    def leave(self, place: Place) -> None:
        """Take a place back."""
        with self._changed:
            self._running.discard(place)
            self._changed.notify_all()

    def shut(self) -> None:
        """Let nobody in any more; who waits is refused."""
        with self._changed:
            self._is_shut = True
            self._changed.notify_all()

    def cancel(self) -> None:
        """Let those who run end at their next token, by `check`."""
        self._is_cancelled = True

    def check(self) -> None:
        """Raise `EngineClosing` when the requests under way are to end."""
        if self._is_cancelled:
            raise EngineClosing

    def wait(self, timeout_s: float) -> bool:
        """Wait until nothing is computed; tell whether that came in time.

        An answer that nobody reads on is not waited for.
        """
        end = time.monotonic() + timeout_s
        with self._changed:
            while self._num_busy() > 0:
                left = min(IDLE_S, end - time.monotonic())
                if left <= 0:
                    return False
                self._changed.wait(left)
        return True

    def _require_open(self) -> None:
        if self._is_shut:
            raise EngineClosing

    def _has_room(self) -> bool:
        return self._num_busy() < self.max_running

    def _num_busy(self) -> int:
        now = time.monotonic()
        idle = [p.idle_since for p in tuple(self._running)]
        return sum(since is None or now - since < IDLE_S for since in idle)
