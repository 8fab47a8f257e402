"""The port of those who look on: what they are told of a request, and the one who is not there.

Owns the words and the settings. Knows no metrics, no traces and no logs. Nothing in these words is
a text of a user's: neither prompts nor questions, passages, tenants, domains or paths.
"""

import contextvars
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, Protocol

from centroidkv.settings import is_count, require
from centroidkv.types import Usage

__all__ = ["NO_OBSERVER", "Ended", "Observer", "RequestSeen", "RouteSeen", "require_observing"]

Ended = Literal[
    "answered",  # the answer is complete
    "abandoned",  # nobody read on
    "timed_out",  # it was not complete in time
    "refused",  # the queue was full
    "failed",  # an error was raised instead, as for a prompt that is too long
]


@dataclass(frozen=True, slots=True)
class RouteSeen:
    """A question that was sent to its cluster; nanoseconds since 1970, seconds.

    `index` says what found the nearest centroid; `none` where there was no plan or no vector.
    """

    index: Literal["chroma", "memory", "none"]
    is_admitted: bool
    began_ns: int
    embed_s: float
    route_s: float
    context: contextvars.Context


@dataclass(frozen=True, slots=True)
class RequestSeen:
    """A request that has ended; nanoseconds since 1970.

    `usage` is None where it ended before anything was measured. `context` is that of the caller.
    """

    id: str
    ended: Ended
    usage: Usage | None
    began_ns: int
    ended_ns: int
    context: contextvars.Context

    @property
    def seconds(self) -> float:
        return (self.ended_ns - self.began_ns) / 1e9

    @property
    def outcome(self) -> str:
        return self.usage.outcome if self.usage is not None else "none"

    @property
    def reason(self) -> str:
        return self.usage.reason if self.usage is not None else "none"


class Observer(Protocol):
    """Is told what requests did. Called from many threads; what it raises is not theirs."""

    def began(self) -> None:
        """Take note that a request begins."""

    def routed(self, seen: RouteSeen) -> None:
        """Take note of a route."""

    def answered(self, seen: RequestSeen) -> None:
        """Take note of a request that has ended."""

    def close(self) -> None:
        """Release what is open."""


class _NoObserver:
    """Nobody looks on."""

    def began(self) -> None:
        pass

    def routed(self, seen: RouteSeen) -> None:
        pass

    def answered(self, seen: RequestSeen) -> None:
        pass

    def close(self) -> None:
        pass


NO_OBSERVER: Observer = _NoObserver()


def require_observing(metrics: object, traces: Any, json_logs: object) -> None:
    """Check the settings of those who look on.

    Raises:
        ConfigError: One is not what it may be.
    """
    require(
        isinstance(metrics, bool) or (is_count(metrics, 1) and int(str(metrics)) < 1 << 16),
        f"metrics must be True, False or a port in 1..65535, not {metrics!r}",
    )
    require(
        isinstance(traces, bool) or hasattr(traces, "get_tracer"),
        f"traces must be True, False or an OpenTelemetry TracerProvider, not {traces!r}",
    )
    require(
        isinstance(json_logs, bool | Path) or (isinstance(json_logs, str) and json_logs),
        f"json_logs must be True, False or the path of a file, not {json_logs!r}",
    )
