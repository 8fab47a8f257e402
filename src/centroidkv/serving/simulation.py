"""Streaming over a link that only exists as a trace, in virtual time.

Owns the clock, the link and the model that a simulated request sees. What decides is the real
policy (`streaming.py`, `meeting.py`), so that it can be tried on links nobody has at hand.
"""

import heapq
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial

from centroidkv.kv.bandwidth import Meter
from centroidkv.serving.meeting import Append, Claim, Compute, Meeting, most_in_flight
from centroidkv.serving.prefill_speed import PrefillSpeed
from centroidkv.serving.streaming import Source, StreamingPolicy

__all__ = ["Machine", "Replay", "Trace", "simulate"]


@dataclass(frozen=True, slots=True)
class Trace:
    """A link: from each time on, so many bytes a second. The last step lasts for ever.

    Attributes:
        steps: (seconds since the request began, bytes a second), the first at 0.
        latency_s: Before the first byte of each read.
    """

    steps: tuple[tuple[float, float], ...]
    latency_s: float = 0.0

    @classmethod
    def steady(cls, bits_per_s: float, latency_s: float = 0.0) -> "Trace":
        """Return a link that does not change."""
        return cls(((0.0, bits_per_s / 8),), latency_s)

    def sent_at(self, begin: float, num_bytes: float) -> float:
        """Return when bytes are through that are sent from `begin` on; `inf` if never."""
        left, now = float(num_bytes), begin
        for number, (since, rate) in enumerate(self.steps):
            more = self.steps[number + 1 :]
            until = more[0][0] if more else float("inf")
            if until <= now:
                continue
            now = max(now, since)
            if rate > 0 and left <= rate * (until - now):
                return now + left / rate
            if until == float("inf"):
                break
            left -= rate * (until - now)
            now = until
        return float("inf")


@dataclass(frozen=True, slots=True)
class Machine:
    """What computing and decoding really take.

    Attributes:
        prefill_s: Seconds for (tokens, tokens before them).
        decode_s: Seconds to decode one block of a level.
        read_timeout_s: A read that takes longer fails.
    """

    prefill_s: Callable[[int, int], float]
    decode_s: Mapping[str, float] = field(default_factory=dict)
    read_timeout_s: float = 10.0


@dataclass(frozen=True, slots=True)
class Replay:
    """What a simulated request did. `levels` counts the blocks loaded at each."""

    ttft_s: float
    loaded_tokens: int
    recomputed_tokens: int
    loaded_bytes: int
    levels: Mapping[str, int]


def simulate(
    sources: Sequence[Source],
    rest: tuple[int, int],
    trace: Trace,
    machine: Machine,
    policy: Callable[[Meter, PrefillSpeed], StreamingPolicy],
) -> Replay:
    """Replay one request for a prompt whose stored prefix is `sources`.

    Args:
        sources: The blocks, in order and without gaps.
        rest: The prompt's tokens behind them, [start, stop).
        trace: The link they come over.
        machine: What computes.
        policy: Makes the policy from a meter and a speed; whatever it already knows counts.
    """
    return _Simulated(sources, rest, trace, machine, policy).run()


class _Simulated:
    def __init__(
        self,
        sources: Sequence[Source],
        rest: tuple[int, int],
        trace: Trace,
        machine: Machine,
        policy: Callable[[Meter, PrefillSpeed], StreamingPolicy],
    ) -> None:
        self._now = 0.0
        self._sources, self._rest, self._trace, self._machine = sources, rest, trace, machine
        self._speed = PrefillSpeed()
        self._meter = Meter(lambda: self._now)
        decides = policy(self._meter, self._speed)
        held = sources[0].start if sources else rest[0]
        self._meeting = Meeting(sources, decides, lambda: self._now, held=held, rest=rest)
        # The match has just asked which blocks there are.
        for tier in {s.tier for s in sources}:
            self._meter.timed(tier, 0, trace.latency_s)
        self._link_free_s = 0.0
        self._decoder_free_s = 0.0
        self._events: list[tuple[float, int, Callable[[], None]]] = []
        self._num_events = 0
        self._free = most_in_flight(sources)
        self._bytes = 0
        self._levels: Counter[str] = Counter()

    def run(self) -> Replay:
        self._claim()
        while (move := self._meeting.next()) is not None:
            if isinstance(move, Compute):
                self._compute(move.start, move.stop)
            elif not isinstance(move, Append):
                arrival = self._events[0][0] if self._events else float("inf")
                self._pass_until(min(self._now + move.seconds, arrival))
        self._compute(*self._rest)
        loaded, recomputed = self._meeting.loaded_tokens, self._meeting.recomputed_tokens
        return Replay(self._now, loaded, recomputed, self._bytes, dict(self._levels))

    def _compute(self, start: int, stop: int) -> None:
        seconds = self._machine.prefill_s(stop - start, start)
        self._pass_until(self._now + seconds)
        self._speed.timed(stop - start, seconds, behind=start)

    def _pass_until(self, until: float) -> None:
        """Let time pass, and let happen what happens meanwhile."""
        while self._events and self._events[0][0] <= until:
            self._now, _, happen = heapq.heappop(self._events)
            happen()
        self._now = max(self._now, until)

    def _at(self, when: float, happen: Callable[[], None]) -> None:
        self._num_events += 1
        heapq.heappush(self._events, (when, self._num_events, happen))

    def _claim(self) -> None:
        """Let all free readers begin with a block each."""
        while self._free and (claim := self._meeting.claim()) is not None:
            self._free -= 1
            size = self._sources[claim.number].sizes[claim.level]
            begin = self._now
            first_byte = max(begin + self._trace.latency_s, self._link_free_s)
            sent = self._trace.sent_at(first_byte, size)
            if sent - begin > self._machine.read_timeout_s:
                limit = begin + self._machine.read_timeout_s
                self._at(limit, partial(self._end, claim, is_lost=True))
            else:
                self._link_free_s = sent
                self._at(sent, partial(self._read, claim, sent - begin))

    def _read(self, claim: Claim, seconds: float) -> None:
        """Take a block's bytes in; one is decoded after the other."""
        source = self._sources[claim.number]
        size, decode_s = source.sizes[claim.level], self._machine.decode_s.get(claim.level, 0.0)
        self._meter.timed(source.tier, size, seconds)
        self._meter.decoded(claim.level, source.num_bytes, decode_s)
        self._bytes += size
        self._levels[claim.level] += 1
        self._decoder_free_s = max(self._now, self._decoder_free_s) + decode_s
        self._at(self._decoder_free_s, partial(self._end, claim, is_lost=False))

    def _end(self, claim: Claim, *, is_lost: bool) -> None:
        self._free += 1
        if is_lost:
            self._meeting.failed(claim.number)
        else:
            self._meeting.arrived(claim.number)
        self._claim()
