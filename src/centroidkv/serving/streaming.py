"""Whether to load a stretch of a stored prefix, at which level, or to compute it from its tokens.

Owns the decision alone, from measured speeds: no thread, no clock, no block. The same object
decides in a request and in a simulation. After CacheGen (Liu et al., SIGCOMM 2024, section 5.3),
with two differences: what is computed and what is loaded come from the two ends of the prefix and
meet, so that a wrong guess costs little, and the level is chosen with decoding counted in.
"""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from centroidkv.kv.bandwidth import Meter, Tier
from centroidkv.serving.prefill_speed import PrefillSpeed

__all__ = ["IN_FLIGHT", "Outlook", "Reading", "Source", "StreamingPolicy"]

# Reads at a time, by tier: a remote has latency to hide.
IN_FLIGHT: Mapping[Tier, int] = {"memory": 1, "disk": 1, "remote": 4}
# Seconds that loading may take without a sign of life before anything was computed, ever.
_COLD_WAIT_S = 0.5
_LEAST_WAIT_S = 1e-3
# Of a piece, how long to wait for the first read of a tier, ever.
_COLD_SHARE = 0.25
# Computing beside decoding takes longer than alone: both want the processor.
_BESIDE = 1.5
# A finer level is preferred to one that is this much faster at the most.
_AS_FAST = 1.05
# Of an objective, how much is planned with: estimates err.
_PLANNED = 0.9
# Of it, until when to wait for blocks that computing could still do without.
_SLACK = 0.99
_MANY = 16  # blocks, among which the latency of the first hardly counts
# A read this much later than expected is believed to hang: it may take as long again.
_LATE, _LATE_S = 1.25, 0.02


@dataclass(frozen=True, slots=True)
class Source:
    """A block that may be loaded: the tokens [start, stop) of the prompt, and its bytes by level.

    Levels stand finest first. `num_bytes` is its size in memory.
    """

    start: int
    stop: int
    tier: Tier
    sizes: Mapping[str, int]
    num_bytes: int = 0


@dataclass(frozen=True, slots=True)
class Reading:
    """A block that is being loaded, at which level, and for how long already."""

    source: Source
    level: str
    age_s: float


@dataclass(frozen=True, slots=True)
class Outlook:
    """Where a request stands.

    `piece` are the tokens [start, stop) that would be computed next. `waiting` blocks could be
    loaded and nobody has begun; `reading` ones are under way, also such as came too late and were
    computed meanwhile: they still take their part of the link. The tokens `rest` follow the stored
    prefix and are computed in any case. `elapsed_s` counts from the beginning of the request.
    """

    piece: tuple[int, int]
    waiting: Sequence[Source]
    reading: Sequence[Reading]
    rest: tuple[int, int]
    elapsed_s: float

    @property
    def open_tokens(self) -> int:
        """Tokens of the prefix that are neither loaded nor computed."""
        reading = [r.source for r in self.reading if r.source.start >= self.piece[0]]
        return sum(s.stop - s.start for s in [*self.waiting, *reading])


class StreamingPolicy:
    """Decides from what the tiers' meter and the model's speed tell.

    Args:
        meter: Of the tiers.
        speed: Of computing.
        objective_s: Seconds to the first token to aim at; None for as soon as possible.
    """

    def __init__(
        self, meter: Meter, speed: PrefillSpeed, *, objective_s: float | None = None
    ) -> None:
        self._meter = meter
        self._speed = speed
        self._objective_s = objective_s

    def wait_s(self, outlook: Outlook) -> float:
        """Return how long to wait for blocks now; 0 where computing the next piece is sooner.

        It is sooner where everything still to load takes longer than the piece beside it.
        """
        start, stop = outlook.piece
        piece_s = self._speed.seconds(stop - start, behind=start)
        oldest_s = max((r.age_s for r in outlook.reading), default=0.0)
        if piece_s is None:
            return _COLD_WAIT_S if oldest_s < _COLD_WAIT_S else 0.0
        wait_s = piece_s
        if not self._is_measured(outlook):
            wait_s = piece_s * _COLD_SHARE - oldest_s  # one read tells more than what is assumed
        elif self._load_s(outlook) >= _BESIDE * piece_s:
            return 0.0
        wait_s = min(wait_s, self._slack_s(outlook, piece_s))
        return wait_s if wait_s >= _LEAST_WAIT_S else 0.0

    def _is_measured(self, outlook: Outlook) -> bool:
        tiers = {s.tier for s in [*outlook.waiting, *(r.source for r in outlook.reading)]}
        return all(self._meter.link(tier).is_measured for tier in tiers)

    def level(self, source: Source, outlook: Outlook) -> str:
        """Choose the level to load a block at: the finest that meets the objective.

        Without one, or where none does, the fastest. Asked again for each block, as bandwidth
        changes.
        """
        levels = list(source.sizes)
        costs = {level: self._block_s(source, level) for level in levels}
        fastest = min(costs.values())
        if self._objective_s is not None:
            for level in levels:
                if self._finish_s(level, outlook) <= _PLANNED * self._objective_s:
                    return level
        return next(level for level in levels if costs[level] <= _AS_FAST * fastest)

    def _slack_s(self, outlook: Outlook, piece_s: float) -> float:
        """Return how long waiting cannot miss an objective that computing alone would meet."""
        if self._objective_s is None:
            return piece_s
        left_s = _SLACK * self._objective_s - outlook.elapsed_s - self._compute_s(outlook)
        if left_s > 0:
            return left_s
        # Computing cannot meet it any more: as soon as possible, and not by reads that hang.
        return 0.0 if self._hangs(outlook.reading) else piece_s

    def _hangs(self, reading: Sequence[Reading]) -> bool:
        """Tell whether reads are late, even if each had to wait for all others."""
        expected_s = sum(self._read_s(r.source, r.level) for r in reading)
        return any(r.age_s > _LATE * expected_s + _LATE_S for r in reading)

    def _compute_s(self, outlook: Outlook) -> float:
        """Return what computing all that is open takes, and the rest of the prompt behind it.

        Piece by piece, as it would be computed: each forward has costs of its own.
        """
        first, stop = outlook.piece
        size, end = max(1, stop - first), first + outlook.open_tokens
        pieces = [(start, min(size, end - start)) for start in range(first, end, size)]
        open_s = sum(self._speed.seconds(n, behind=start) or 0.0 for start, n in pieces)
        return open_s + self._rest_s(outlook)

    def _rest_s(self, outlook: Outlook) -> float:
        start, stop = outlook.rest
        return self._speed.seconds(stop - start, behind=start) or 0.0

    def _finish_s(self, level: str, outlook: Outlook) -> float:
        """Return when the first token would come if all waiting blocks were of one level.

        Loading and computing share what is open as their speeds are.
        """
        load_s = self._load_s(outlook, level)
        compute_s = self._speed.seconds(outlook.open_tokens, behind=outlook.piece[0])
        if compute_s and self._piece_s(outlook) < load_s:
            load_s = max(load_s * compute_s / (load_s + compute_s), self._piece_s(outlook))
        return outlook.elapsed_s + load_s + self._rest_s(outlook)

    def _piece_s(self, outlook: Outlook) -> float:
        start, stop = outlook.piece
        return self._speed.seconds(stop - start, behind=start) or 0.0

    def _load_s(self, outlook: Outlook, level: str | None = None) -> float:
        """Return when all that is still to load would be there, seen from now."""
        late_s = 0.0
        chosen: list[tuple[Source, str, float]] = []  # with the part that is still to come
        oldest_s = max((r.age_s for r in outlook.reading), default=0.0)
        for reading in outlook.reading:
            expected_s = self._read_s(reading.source, reading.level)
            if reading.age_s > _LATE * expected_s + _LATE_S:
                late_s = max(late_s, reading.age_s)
            share = 1.0
            if reading.age_s == oldest_s and expected_s > 0:  # the others may stand behind it
                share = max(0.0, 1 - reading.age_s / expected_s)
            chosen.append((reading.source, reading.level, share))
        for source in outlook.waiting:
            if level is None or level not in source.sizes:
                level = self._fastest(source)  # of the next ones too, mostly
            chosen.append((source, level, 1.0))
        return max(late_s, self._together_s(chosen))

    def _together_s(self, chosen: Sequence[tuple[Source, str, float]]) -> float:
        """Return how long blocks take, tier by tier: reading, and decoding beside it."""
        total = 0.0
        for tier in Counter(s.tier for s, _, _ in chosen):
            own = [c for c in chosen if c[0].tier == tier]
            num_bytes = sum(s.sizes[level] * share for s, level, share in own)
            reads = sum(share for _, _, share in own)
            decode_s = sum(share * self._decode_s(s, level) for s, level, share in own)
            total += self._meter.link(tier).seconds(
                num_bytes, num_reads=reads, in_flight=IN_FLIGHT[tier], decode_s=decode_s
            )
        return total

    def _read_s(self, source: Source, level: str) -> float:
        """Return how long one block takes while the link is shared with others."""
        link, at_once = self._meter.link(source.tier), IN_FLIGHT[source.tier]
        shared_s = at_once * source.sizes[level] / link.bytes_per_s
        return link.latency_s + shared_s + self._decode_s(source, level)

    def _block_s(self, source: Source, level: str) -> float:
        """Return what one block of many costs."""
        return (
            self._meter.link(source.tier).seconds(
                _MANY * source.sizes[level],
                num_reads=_MANY,
                in_flight=IN_FLIGHT[source.tier],
                decode_s=_MANY * self._decode_s(source, level),
            )
            / _MANY
        )

    def _decode_s(self, source: Source, level: str) -> float:
        return self._meter.decode_s(level, source.num_bytes)

    def _fastest(self, source: Source) -> str:
        return min(source.sizes, key=lambda level: self._block_s(source, level))
