"""Those who look on at one open store: which there are, and that they cost a request nothing.

Owns the order in which they are told. Does not know what they do with it.
"""

import logging
import operator
from collections import deque
from collections.abc import Callable
from typing import TYPE_CHECKING

from centroidkv.config import EngineConfig
from centroidkv.observers.health import StoreParts
from centroidkv.observing import Observer, RequestSeen, RouteSeen

if TYPE_CHECKING:
    from centroidkv.observers.metrics import Metrics

_log = logging.getLogger("centroidkv")

__all__ = ["Observers", "open_observers"]


class Observers:
    """Tells several observers. One that fails is warned of once, and costs nothing else."""

    def __init__(self, observers: list[Observer], metrics: "Metrics | None" = None) -> None:
        self.metrics = metrics
        self._observers = observers
        self._failed: set[int] = set()
        self._waiting: deque[RequestSeen] = deque()
        if metrics is not None:
            metrics.before_reading = self.tell_waiting

    def watch(self, observer: Observer) -> None:
        """Tell one more observer, from now on."""
        self._observers.append(observer)

    def began(self) -> None:
        self.tell_waiting()

    def routed(self, seen: RouteSeen) -> None:
        self._each(operator.methodcaller("routed", seen))

    def answered(self, seen: RequestSeen) -> None:
        self._waiting.append(seen)
        # The garbage collector may end an answer while this very thread holds a lock of a
        # metric's or an exporter's: such a request is told of later.
        if seen.ended != "abandoned":
            self.tell_waiting()

    def tell_waiting(self) -> None:
        """Tell of requests that have not been told of."""
        while True:
            try:
                seen = self._waiting.popleft()
            except IndexError:
                return
            self._each(operator.methodcaller("answered", seen))

    def _each(self, tell: Callable[[Observer], None]) -> None:
        for number, observer in enumerate(self._observers):
            try:
                tell(observer)
            except Exception as error:  # noqa: BLE001 - whatever it is, it is not the request's
                self._report(number, error)

    def _report(self, number: int, error: Exception) -> None:
        if number not in self._failed:
            self._failed.add(number)
            name = type(self._observers[number]).__name__
            _log.warning("%s lost what it was told: %s", name, type(error).__name__)

    def close(self) -> None:
        self.tell_waiting()
        for observer in self._observers:
            observer.close()


def open_observers(config: EngineConfig, parts: StoreParts) -> Observers | None:
    """Open what the settings ask for; None when nobody looks on.

    Raises:
        ConfigError: A port is taken, or a log cannot be written.
        MissingExtra: A library is not installed.
    """
    observers: list[Observer] = []
    metrics = None
    try:
        if config.traces:
            from centroidkv.observers.tracing import Traces

            observers.append(Traces.of(config.traces))
        if config.json_logs:
            from centroidkv.observers.request_log import RequestLog

            observers.append(RequestLog(None if config.json_logs is True else config.json_logs))
        if config.metrics:
            from centroidkv.observers.metrics import open_metrics

            metrics = open_metrics(parts, port=None if config.metrics is True else config.metrics)
            observers.append(metrics)
    except BaseException:
        for observer in observers:
            observer.close()
        raise
    return Observers(observers, metrics) if observers else None
