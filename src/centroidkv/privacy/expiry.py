"""Letting go of what a tenant has not stored or asked again within its `ttl_s`.

Looked at before every request, so nothing that is too old is ever served; done at most 64 times
within a `ttl_s`, for all that would be too old before the next time. When the clock was set back,
what seems to be of later than now is taken for new: nothing is lost, and it goes one `ttl_s` later.
Where the store's files fail, requests go on without what is stored, until it can be swept again.
"""

import logging
import sqlite3
import threading
import time
from collections.abc import Callable, Iterable
from typing import Protocol

from centroidkv.errors import CentroidKVError
from centroidkv.privacy.forgetting import Privacy
from centroidkv.privacy.wanted import Wanted

_log = logging.getLogger("centroidkv")

SWEEPS = 64
# So far back may a clock be set by its own correction.
CORRECTION_S = 2.0

__all__ = ["Aged", "Expiry"]


class Aged(Protocol):
    """What notes when its entries were stored."""

    def settle_clock(self, now_s: float) -> None: ...


class Beside(Protocol):
    """What else is to be let go of while requests come, such as of tenants that ask nothing."""

    def look(self) -> None: ...

    def sweep(self) -> bool: ...

    def hasten(self, ttl_s: float) -> None: ...


class Expiry:
    """The time to live of one tenant's entries. Safe for many threads.

    Args:
        privacy: What lets go of them.
        ttl_s: How long; None for ever.
        aged: What notes when entries were stored; asked for at each sweep.
        clock: Unix time.
    """

    def __init__(
        self,
        privacy: Privacy,
        ttl_s: float | None,
        aged: Callable[[], Iterable[Aged]],
        clock: Callable[[], float] = time.time,
    ) -> None:
        self._privacy = privacy
        self._ttl_s = ttl_s
        self._aged = aged
        self._clock = clock
        self._swept_s: float | None = None
        self._lock = threading.RLock()
        self._owes_rewriting = False
        self._has_warned = False
        self.beside: Beside | None = None
        self.ends_beside = False  # whether what is beside is swept with this one at its end

    def look(self) -> bool:
        """Let go of what is too old, if it is time; tell whether nothing too old can be found."""
        is_swept = self.look_at_own()
        if self.beside is not None:
            self.beside.look()
        return is_swept

    def look_at_own(self) -> bool:
        """Do what `look` does, for this tenant alone."""
        if self._ttl_s is None or not self._is_due():
            return True
        with self._lock:
            return not self._is_due() or self._tried(rewrites=False)

    def join(self, opener: "Expiry") -> None:
        """Look at what is beside the opener's entries too."""
        self.beside = opener.beside
        if self.beside is not None and self._ttl_s is not None:
            self.beside.hasten(self._ttl_s)

    def finish(self) -> None:
        """Let go of what is too old, and rewrite the files if they still hold any of it."""
        is_beside = self.beside is not None and self.ends_beside and self.beside.sweep()
        with self._lock:
            self._owes_rewriting = self._owes_rewriting or is_beside
            self._tried(rewrites=True)

    def _tried(self, *, rewrites: bool) -> bool:
        try:
            self.sweep(rewrites=rewrites)
        except (CentroidKVError, OSError, sqlite3.Error) as error:
            if not self._has_warned:
                self._has_warned = True
                _log.warning("what is too old could not be let go of: %s", error)
            return False
        return True

    def _is_due(self) -> bool:
        if self._swept_s is None or self._ttl_s is None:
            return True
        now = self._clock()
        was_set_back = now < self._swept_s - CORRECTION_S
        return was_set_back or now >= self._swept_s + self._ttl_s / SWEEPS

    def sweep(self, *, rewrites: bool = False) -> None:
        """Let go of what is too old now, or will be before the next sweep.

        With `rewrites` files are rewritten too, so that nothing of it remains in them.
        """
        if self._ttl_s is None and not (rewrites and self._owes_rewriting):
            return
        now = self._clock()
        for aged in self._aged():
            aged.settle_clock(now)
        # Without a time to live nothing is too old, but files may have to be rewritten.
        before_s = 0.0 if self._ttl_s is None else now - self._ttl_s * (1 - 1 / SWEEPS)
        rewrites = rewrites and self._owes_rewriting
        found = self._privacy.expire(Wanted(before_s=before_s), rewrites=rewrites)
        self._owes_rewriting = not rewrites and (found or self._owes_rewriting)
        self._swept_s = now
