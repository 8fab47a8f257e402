"""How fast each tier gives blocks: measured from the reads that requests make anyway.

Owns bytes a second and latency per tier, and how long a level takes to decode. Does not know why
it is asked: what to load is decided elsewhere. Recent reads weigh more, so that a link that
changes is noticed within a few blocks (CacheGen takes the last chunk's throughput; Liu et al.,
SIGCOMM 2024, section 5.3).
"""

import threading
import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal, TypeAlias

import numpy as np

Tier: TypeAlias = Literal["memory", "disk", "remote"]

__all__ = ["Link", "Meter", "Tier"]

# So many reads of a tier are remembered: two rounds of four at a time.
_WINDOW = 8
_LEAST_READS = 4  # to tell latency from size
_FADE = 0.8  # of the weight of earlier times, for each new one
# Reads no larger than this tell the latency alone: a question whether a block is there.
_ASKING_BYTES = 4096
# Assumed before the first read: bytes a second, and seconds to the first byte.
_ASSUMED: dict[Tier, tuple[float, float]] = {
    "memory": (4e9, 0.0),
    "disk": (5e8, 1e-3),
    "remote": (5e7, 2e-2),
}
_ASSUMED_DECODE = 4e8  # decoded bytes a second, of a level that was never decoded


@dataclass(frozen=True, slots=True)
class Link:
    """What reads of a tier cost: seconds to the first byte, and bytes a second from there on."""

    bytes_per_s: float
    latency_s: float
    is_measured: bool

    def seconds(
        self, num_bytes: float, *, num_reads: float, in_flight: int = 1, decode_s: float = 0.0
    ) -> float:
        """Return how long reads take, so many at a time, each decoded by who has read it.

        They share the link and the processor; latency is hidden behind the others.
        """
        moving_s = num_bytes / self.bytes_per_s
        each_s = (num_reads * self.latency_s + moving_s + decode_s) / in_flight
        if in_flight == 1:
            return each_s
        return max(each_s, min(num_reads, 1.0) * self.latency_s + max(moving_s, decode_s))


class Meter:
    """Measures the tiers of one store. Safe for many threads."""

    def __init__(self, clock: Callable[[], float] = time.perf_counter) -> None:
        self._clock = clock
        self._lock = threading.Lock()
        self._tiers: dict[Tier, _Reads] = {}
        self._links: dict[Tier, Link] = {}  # as the last reads tell
        self._decoding: dict[str, tuple[float, float]] = {}

    def timed(self, tier: Tier, num_bytes: int, seconds: float) -> None:
        """Note a read that has just ended. A read of nothing tells the latency."""
        with self._lock:
            self._tiers.setdefault(tier, _Reads(tier)).add(num_bytes, seconds, self._clock())
            self._links.pop(tier, None)

    def link(self, tier: Tier) -> Link:
        """Return what reads of a tier cost now; before the first one, what is assumed."""
        with self._lock:
            if tier not in self._links:
                self._links[tier] = (self._tiers.get(tier) or _Reads(tier)).link()
            return self._links[tier]

    def decoded(self, level: str, num_bytes: int, seconds: float) -> None:
        """Note how long a block of so many bytes took to decode from a level."""
        with self._lock:
            known_bytes, known_s = self._decoding.get(level, (0.0, 0.0))
            self._decoding[level] = (_FADE * known_bytes + num_bytes, _FADE * known_s + seconds)

    def decode_s(self, level: str, num_bytes: float) -> float:
        """Return how long a block of so many bytes takes to decode; raw ones take no time."""
        with self._lock:
            known_bytes, seconds = self._decoding.get(level, (0.0, 0.0))
        if known_bytes:
            return seconds * num_bytes / known_bytes
        return 0.0 if level == "raw" else num_bytes / _ASSUMED_DECODE


class _Reads:
    """The last reads of one tier: (begin, end, bytes) each.

    The bandwidth is bytes over the time in which any were coming in, so that several reads at a
    time count as what they are: one link, shared.
    """

    def __init__(self, tier: Tier) -> None:
        self._assumed_rate, self._assumed_latency_s = _ASSUMED[tier]
        self._reads: deque[tuple[float, float, int]] = deque(maxlen=_WINDOW)
        self._asking_s: float | None = None

    def add(self, num_bytes: int, seconds: float, now: float) -> None:
        if num_bytes > _ASKING_BYTES:
            self._reads.append((now - seconds, now, num_bytes))
            return
        known = self._asking_s
        self._asking_s = seconds if known is None else known + (1 - _FADE) * (seconds - known)

    def link(self) -> Link:
        """Return what the last reads tell."""
        measured_s = self._asking_s if self._asking_s is not None else self._first_byte_s()
        if not self._reads:
            latency_s = self._assumed_latency_s if measured_s is None else measured_s
            return Link(self._assumed_rate, latency_s, is_measured=False)
        quickest_s = min(end - begin for begin, end, _ in self._reads)
        # Nobody told the latency: then it explains no more than half of the quickest read.
        latency_s = min(self._assumed_latency_s, quickest_s / 2)
        if measured_s is not None:
            latency_s = min(measured_s, 0.99 * quickest_s)
        moving_s = max(self._moving_s(latency_s), 1e-9)
        return Link(sum(n for _, _, n in self._reads) / moving_s, latency_s, is_measured=True)

    def _moving_s(self, latency_s: float) -> float:
        """Return the seconds in which bytes of at least one read were coming in."""
        moving_s, until = 0.0, float("-inf")
        for begin, end, _ in sorted(self._reads):
            moving_s += max(0.0, end - max(begin + latency_s, until))
            until = max(until, end)
        return moving_s

    def _first_byte_s(self) -> float | None:
        """Return where a line through the times of reads of several sizes begins."""
        sizes = np.array([n for _, _, n in self._reads], float)
        if len(sizes) < _LEAST_READS or sizes.std() < 0.1 * sizes.mean():
            return None
        seconds = np.array([end - begin for begin, end, _ in self._reads])
        slope, start = np.polyfit(sizes, seconds, 1)
        return float(start) if slope >= 0 and start >= 0 else None
