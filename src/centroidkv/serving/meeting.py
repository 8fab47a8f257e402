"""A stored prefix that is loaded from its end while it is computed from its beginning.

Owns which block is whose, and what comes next for both sides; they meet somewhere, and no token
is computed twice or left out. Knows neither threads nor how blocks are read: a request drives it
with threads (`restoring.py`), a simulation with a virtual clock (`simulation.py`). Not locked.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from enum import Enum
from typing import TypeAlias

from centroidkv.serving.streaming import IN_FLIGHT, Outlook, Reading, Source, StreamingPolicy

__all__ = ["Append", "Claim", "Compute", "Meeting", "Move", "Wait"]

PIECE_BLOCKS = 4  # of 64 tokens: shorter forwards cost more a token
# Loads that fail one after another before no more are tried.
MOST_FAILURES = 2
# How long a decision to wait holds: a quarter of the wait, and no longer than this. Blocks arrive
# every two milliseconds, and asking costs a fifth of one.
_HOLDS, _HOLDS_S = 0.25, 0.02


class _State(Enum):
    WAITING = 0
    READING = 1
    READY = 2
    LOST = 3  # its load failed, or is not tried any more


@dataclass(frozen=True, slots=True)
class Claim:
    """A block to load now, by its number, and the level to load it at."""

    number: int
    level: str


@dataclass(frozen=True, slots=True)
class Append:
    """The blocks [first, stop) are loaded and come next."""

    first: int
    stop: int


@dataclass(frozen=True, slots=True)
class Compute:
    """The tokens [start, stop) of the prompt are computed next."""

    start: int
    stop: int


@dataclass(frozen=True, slots=True)
class Wait:
    """Nothing is to be done before a block arrives, at most for so long."""

    seconds: float


Move: TypeAlias = Append | Compute | Wait


class Meeting:
    """The blocks of one stored prefix between those who load and the one who computes.

    Args:
        sources: The blocks, in order and without gaps. One without sizes cannot be loaded.
        held: Tokens that the sequence has.
        rest: The prompt's tokens behind the stored prefix, [start, stop).
        policy: Decides between loading and computing.
        clock: Seconds since the request began.
        unit: Blocks that are appended or computed together, for a model with a grid.
    """

    def __init__(
        self,
        sources: Sequence[Source],
        policy: StreamingPolicy,
        clock: Callable[[], float],
        *,
        held: int,
        rest: tuple[int, int],
        unit: int = 1,
    ) -> None:
        self._sources = sources
        self._policy = policy
        self._clock = clock
        self._held = held
        self._rest = rest
        self._unit = unit
        self._states = [_State.WAITING if s.sizes else _State.LOST for s in sources]
        self._readings: dict[int, tuple[str, float]] = {}
        self._front = 0  # blocks before it are in the sequence
        self._failures = 0
        self._wait_until = 0.0
        self.num_lost = self._states.count(_State.LOST)
        self.loaded_tokens = 0
        self.recomputed_tokens = 0
        # Where loading is faster than one piece is computed, blocks come in order, so that each
        # is appended while the next is read.
        self._from_end = bool(sources) and policy.wait_s(self._outlook()) <= 0

    # those who load

    def claim(self) -> Claim | None:
        """Return the next block to load, None where nothing is left to load."""
        waiting = self._waiting()
        if not waiting:
            return None
        number = waiting[-1] if self._from_end else waiting[0]
        source = self._sources[number]
        level = next(iter(source.sizes))
        if len(source.sizes) > 1:
            level = self._policy.level(source, self._outlook())
        self._states[number] = _State.READING
        self._readings[number] = (level, self._clock())
        return Claim(number, level)

    def arrived(self, number: int) -> None:
        """Note that a block is loaded."""
        self._readings.pop(number, None)
        self._failures = 0
        self._states[number] = _State.READY

    def failed(self, number: int) -> None:
        """Note that a block cannot be loaded; after a few in a row, no more are tried."""
        self._readings.pop(number, None)
        self._failures += 1
        self._wait_until = 0.0
        self.num_lost += 1
        self._states[number] = _State.LOST
        if self._failures >= MOST_FAILURES:
            self.abandon()

    def abandon(self) -> None:
        """Load nothing more; what is under way may still arrive."""
        for number in self._waiting():
            self._states[number] = _State.LOST

    # the one who computes

    def next(self) -> Move | None:
        """Return what comes next; None when the whole prefix is in the sequence.

        Blocks of a move that is not `Wait` count as done: they are not loaded any more.
        """
        if self._front >= len(self._sources):
            return None
        ready = self._ready_until()
        if ready > self._front:
            move = Append(self._front, ready)
            self.loaded_tokens += self._sources[ready - 1].stop - self._here
            self._front = ready
            return move
        unit = self._states[self._front : self._front + self._unit]
        if _State.LOST not in unit:
            seconds = self._wait_s()
            if seconds > 0:
                return Wait(seconds)
        return self._compute()

    def _wait_s(self) -> float:
        """Return how long to wait; the policy is asked again once its last answer has aged."""
        now = self._clock()
        if now < self._wait_until:
            return self._wait_until - now
        seconds = self._policy.wait_s(self._outlook())
        self._wait_until = now + min(seconds * _HOLDS, _HOLDS_S)
        return seconds

    def _compute(self) -> Compute:
        self._from_end = True
        start, stop = self._here, self._piece_end()
        self._front = stop
        move = Compute(start, self._sources[stop - 1].stop)
        self.recomputed_tokens += move.stop - move.start
        return move

    @property
    def _here(self) -> int:
        """How many tokens the sequence has."""
        return self._sources[self._front - 1].stop if self._front else self._held

    def _ready_until(self) -> int:
        """Return where the blocks end that can be appended now, in whole units."""
        end = self._front
        while end < len(self._sources) and self._is_ready(end):
            end += self._unit
        return min(end, len(self._sources))

    def _is_ready(self, first: int) -> bool:
        return all(s is _State.READY for s in self._states[first : first + self._unit])

    def _piece_end(self) -> int:
        """Return where the next computed piece ends: before what is ready, in whole units."""
        most = min(self._front + max(self._unit, PIECE_BLOCKS), len(self._sources))
        ready = (n for n in range(self._front, most, self._unit) if self._is_ready(n))
        return next(ready, most)

    def _waiting(self) -> list[int]:
        numbers = range(self._front, len(self._sources))
        return [n for n in numbers if self._states[n] is _State.WAITING]

    def _outlook(self) -> Outlook:
        now = self._clock()
        reading = [
            Reading(self._sources[n], level, now - since)
            for n, (level, since) in self._readings.items()
        ]
        return Outlook(
            (self._here, self._sources[self._piece_end() - 1].stop),
            [self._sources[n] for n in self._waiting()],
            reading,
            self._rest,
            now,
        )


def most_in_flight(sources: Sequence[Source]) -> int:
    """Return how many blocks to load at a time."""
    return max((IN_FLIGHT[s.tier] for s in sources), default=0)
