"""Calls that may run at once, and work that must find none of them under way."""

import contextlib
import threading
from collections.abc import Iterator

__all__ = ["Exclusion"]


class Exclusion:
    """Any number of threads in `together`, or one `alone`; who waits to be alone goes first.

    Neither may be entered again by a thread that is in it.
    """

    def __init__(self) -> None:
        self._changed = threading.Condition()
        self._num_together = 0
        self._num_alone = 0  # waiting or there
        self._is_alone = False

    @property
    def is_awaited(self) -> bool:
        """Whether somebody is alone or waits to be."""
        return self._num_alone > 0

    @contextlib.contextmanager
    def together(self) -> Iterator[None]:
        """Run beside others, and not while somebody is alone."""
        with self._changed:
            self._changed.wait_for(lambda: not self.is_awaited)
            self._num_together += 1
        try:
            yield
        finally:
            with self._changed:
                self._num_together -= 1
                self._changed.notify_all()

    @contextlib.contextmanager
    def alone(self, limit_s: float | None = None) -> Iterator[None]:
        """Wait until nobody else is there, and keep them out.

        Raises:
            TimeoutError: Somebody still is after `limit_s` seconds.
        """
        with self._changed:
            self._num_alone += 1
            try:
                if not self._changed.wait_for(self._is_free, limit_s):
                    raise TimeoutError
            except BaseException:
                self._num_alone -= 1
                self._changed.notify_all()
                raise
            self._is_alone = True
        try:
            yield
        finally:
            with self._changed:
                self._num_alone -= 1
                self._is_alone = False
                self._changed.notify_all()

    def _is_free(self) -> bool:
        return not (self._num_together or self._is_alone)
