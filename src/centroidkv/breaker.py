"""A circuit breaker: what keeps failing is left alone for a while, and then tried once.

Closed: calls go out. Open: none do. Half open: one does, and decides. Knows nothing of what is
called (Nygard, Release It!, 2007).
"""

import threading
import time
from collections.abc import Callable
from typing import Literal

__all__ = ["Breaker"]


class Breaker:
    """Opens after `most_failures` in a row, for longer each time that the trial fails too."""

    def __init__(
        self,
        *,
        most_failures: int = 3,
        pause_s: float = 10.0,
        longest_s: float = 300.0,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._most, self._first_s, self._longest_s = most_failures, pause_s, longest_s
        self._clock = clock
        self._lock = threading.Lock()
        self._failures = 0
        self._pause_s = pause_s
        self._opened: float | None = None
        self._is_tried = False

    @property
    def state(self) -> Literal["closed", "open", "half-open"]:
        opened = self._opened  # read once: other threads close the breaker
        if opened is None:
            return "closed"
        return "open" if self._clock() < opened + self._pause_s else "half-open"

    def allows(self) -> bool:
        """Tell whether a call may go out; half open, the first who asks is the trial."""
        with self._lock:
            state = self.state
            if state == "half-open":
                # Open again until the trial is decided; if it never is, another one follows.
                self._opened, self._is_tried = self._clock(), True
                return True
            return state == "closed"

    def succeeded(self) -> None:
        """Note that a call was answered."""
        with self._lock:
            self._failures, self._opened, self._is_tried = 0, None, False
            self._pause_s = self._first_s

    def failed(self) -> None:
        """Note that a call was not answered, or refused."""
        with self._lock:
            self._failures += 1
            if self._opened is not None:
                if self._is_tried:
                    self._pause_s = min(2 * self._pause_s, self._longest_s)
                    self._opened, self._is_tried = self._clock(), False
            elif self._failures >= self._most:
                self._opened = self._clock()
