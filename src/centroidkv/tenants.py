"""The engines of one store's tenants: made on demand, one each, gone with the one that opened it.

Knows nothing of engines but whether they are open and how to close them.
"""

import threading
from collections.abc import Callable
from typing import Generic, Protocol, TypeVar

from centroidkv.errors import ConfigError
from centroidkv.lifetime import CLOSED

__all__ = ["Tenants"]


class _Closable(Protocol):
    @property
    def is_closed(self) -> bool: ...

    def close(self) -> None: ...


E = TypeVar("E", bound=_Closable)


class Tenants(Generic[E]):
    """Engines by tenant. `make` makes one that shares what `opener` has open."""

    def __init__(self, name: str, opener: E, make: Callable[[str, float | None], E]) -> None:
        self._opener = opener
        self._make = make
        self._engines = {name: opener}
        self._lock = threading.Lock()
        self._is_closed = False

    def of(self, tenant: str, ttl_s: float | None = None) -> E:
        """Return a tenant's engine; one that was closed alone is made anew, with this `ttl_s`.

        Raises:
            ConfigError: All were closed.
        """
        with self._lock:
            if self._is_closed:
                raise ConfigError(CLOSED)
            known = self._engines.get(tenant)
            if known is None or known.is_closed:
                known = self._engines[tenant] = self._make(tenant, ttl_s)
            return known

    def opened(self) -> list[E]:
        """Return the engines that are open."""
        with self._lock:
            return [engine for engine in self._engines.values() if not engine.is_closed]

    def close(self, engine: E) -> None:
        """Let go of an engine that closes; close all others with the one that opened the store."""
        with self._lock:
            self._engines = {name: e for name, e in self._engines.items() if e is not engine}
            if engine is not self._opener:
                return
            self._is_closed = True
            others = list(self._engines.values())
        # None is made from here on.
        for other in others:
            other.close()
