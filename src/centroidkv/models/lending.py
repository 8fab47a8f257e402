"""Prefixes that are held once: a sequence borrows the KV of a running one that began alike.

Owns who borrows from whom. The leading tokens of a running sequence never change, so another
sequence may read them where they are, and writes only what differs into a tail of its own (the
shared prefix of J. Juravsky et al., "Hydragen", arXiv:2402.05099). Knows nothing of attention.
"""

import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import TypeAlias

import numpy as np

from centroidkv.models.arena import NOBODY, Arena, ArenaPool, KVShape, Resident
from centroidkv.types import KVBlock

__all__ = ["BorrowedArena", "SequenceKV", "SharedArenas", "own_part"]

# A tail belongs to one answer and serves no later one, so it is hardly rounded up.
TAIL_GRAIN_TOKENS = 16
# Shorter prefixes are copied; a shared one costs attention in two parts.
LEAST_TOKENS = 64
# How long to wait for a sequence that began alike and computes nothing yet.
PATIENCE_S = 1.0


class BorrowedArena:
    """KV of one sequence: `[0, lent)` in another's arena, the rest in a tail of its own."""

    def __init__(self, lender: Arena, lent: int, capacity: int) -> None:
        self.lender = lender
        self.lent = lent
        tokens = max(1, capacity - lent)
        self.tail = Arena(lender.shape, -(-tokens // TAIL_GRAIN_TOKENS) * TAIL_GRAIN_TOKENS)

    @property
    def shape(self) -> KVShape:
        return self.tail.shape

    @property
    def capacity(self) -> int:
        return self.lent + self.tail.capacity

    @property
    def num_bytes(self) -> int:
        """The bytes of the tail; the prefix is counted where it is held."""
        return self.tail.num_bytes

    @property
    def num_tokens(self) -> int:
        return self.lent + self.tail.num_tokens

    def resize(self, num_tokens: int) -> None:
        """Declare the first `num_tokens` valid and the rest free; never fewer than are lent."""
        assert num_tokens >= self.lent, "a borrowed prefix cannot be cut"
        self.tail.resize(num_tokens - self.lent)

    def append(self, block: KVBlock) -> None:
        """Copy a block's KV behind what is there."""
        self.tail.append(block)

    def snapshot(self, start: int, stop: int) -> KVBlock:
        """Copy the KV of the tokens [start, stop) out."""
        if start >= self.lent:
            return self.tail.snapshot(start - self.lent, stop - self.lent)
        if stop <= self.lent:
            return self.lender.snapshot(start, stop)
        before = self.lender.snapshot(start, self.lent)
        behind = self.tail.snapshot(0, stop - self.lent)
        return KVBlock(
            np.concatenate([before.keys, behind.keys], axis=2),
            np.concatenate([before.values, behind.values], axis=2),
            before.dtype,
        )


SequenceKV: TypeAlias = Arena | BorrowedArena


def own_part(kv: SequenceKV) -> tuple[Arena, int]:
    """Return the arena that a sequence writes to, and the position of its token 0."""
    return (kv, 0) if isinstance(kv, Arena) else (kv.tail, kv.lent)


@dataclass(slots=True, eq=False)
class _Lender:
    """An arena that holds a whole sequence, and what is lent of it."""

    arena: Arena
    resident: Resident  # what it holds or will hold
    ready: int  # leading tokens whose KV is complete in all layers
    may_lend: bool = True
    is_open: bool = True
    is_working: bool = False
    opened: float = field(default_factory=time.monotonic)
    lent: list[int] = field(default_factory=list)

    def lend(self, num_tokens: int) -> None:
        self.lent.append(num_tokens)
        self.arena.lent_tokens = max(self.lent)

    def take_back(self, num_tokens: int) -> None:
        self.lent.remove(num_tokens)
        self.arena.lent_tokens = max(self.lent, default=0)

    def will_have(self, num_tokens: int) -> bool:
        """Tell whether it is worth waiting until so many tokens are ready."""
        if num_tokens > len(self.resident.token_ids):  # it lends less than it was expected to
            return False
        is_late = time.monotonic() - self.opened > PATIENCE_S
        return self.is_open and self.ready < num_tokens and (self.is_working or not is_late)


class SharedArenas:
    """Opens the KV of sequences: an arena of the pool, or a prefix of a running one and a tail.

    Safe for many threads. A sequence of no namespace neither lends nor borrows.
    """

    def __init__(self, pool: ArenaPool) -> None:
        self._pool = pool
        self._lenders: dict[Arena, _Lender] = {}
        self._borrowed: list[BorrowedArena] = []
        self._changed = threading.Condition()
        self.num_borrowed = 0

    @property
    def num_bytes(self) -> int:
        """Bytes of all KV memory that running sequences hold or read; shared memory counts once."""
        with self._changed:
            held = sum(a.num_bytes for a in tuple(self._lenders))
            return held + sum(kv.num_bytes for kv in self._borrowed)

    def open(
        self,
        capacity: int,
        wanted: Resident = NOBODY,
        *,
        may_borrow: Callable[[], bool] = lambda: True,
        may_lend: bool = True,
    ) -> SequenceKV:
        """Return KV with room for `capacity` tokens, holding what it may of `wanted`.

        `may_borrow` is asked where there is something to borrow. Where another sequence computes
        a shared prefix just now, waits for it: computing it twice would take longer.
        """
        is_allowed: bool | None = None
        while True:
            with self._changed:
                found = self._best(capacity, wanted)
                if found is None or is_allowed is False:
                    return self._own(capacity, wanted, may_lend=may_lend)
                if is_allowed:
                    borrowed = self._borrow(*found, capacity)
                    if borrowed is not None:
                        return borrowed
                    if found[0].is_open:
                        return self._own(capacity, wanted, may_lend=may_lend)
            if is_allowed is None:
                is_allowed = may_borrow()  # may try the model, while others go on

    def _borrow(self, lender: _Lender, shared: int, capacity: int) -> BorrowedArena | None:
        """Wait until so many tokens are ready, and borrow them; None where they never will be."""
        lender.lend(shared)
        borrowed = None
        try:
            while lender.will_have(shared):
                self._changed.wait(PATIENCE_S)
            if lender.ready >= shared:
                borrowed = BorrowedArena(lender.arena, shared, capacity)
                self._borrowed.append(borrowed)
                self.num_borrowed += 1
        finally:
            if borrowed is None:  # or it broke off, as by Ctrl-C or for want of memory
                self._take_back(lender, shared)
        return borrowed

    def _own(self, capacity: int, wanted: Resident, *, may_lend: bool) -> Arena:
        arena = self._pool.take(capacity, wanted)
        lent = self._lenders[arena].lent if arena in self._lenders else []
        lender = _Lender(arena, wanted, arena.num_tokens, may_lend=may_lend, lent=lent)
        self._lenders[arena] = lender
        return arena

    def _best(self, capacity: int, wanted: Resident) -> tuple[_Lender, int] | None:
        """Find who holds most of `wanted`, unless an idle arena that can be had holds more."""
        if not wanted.namespace:
            return None
        shares = [(x, _shared(x, wanted)) for x in tuple(self._lenders.values())]
        lender, shared = max(shares, key=lambda x: x[1], default=(None, 0))
        if lender is None or shared < max(LEAST_TOKENS, len(wanted.token_ids) / 2):
            return None
        idle = self._pool.shared(capacity, wanted)
        if idle > shared or (idle == shared and not lender.is_open):
            return None
        return lender, shared

    def num_idle(self, wanted: Resident) -> int:
        """Count the leading tokens of `wanted` that an idle arena holds."""
        return self._pool.shared(0, wanted)

    def held(self, namespace: str) -> list[tuple[int, ...]]:
        """Return the token ids whose KV idle arenas of a namespace hold."""
        return [tuple(map(int, r.token_ids)) for r in self._pool.held(namespace)]

    def forget(self, namespace: str) -> int:
        """Let go of a namespace's idle arenas; return how many. Running sequences are let end."""
        with self._changed:
            for lender in tuple(self._lenders.values()):
                if not lender.is_open and lender.resident.namespace == namespace:
                    lender.resident = NOBODY
            return self._pool.forget(namespace)

    def working(self, kv: SequenceKV) -> None:
        """Note that a sequence computes its prompt: others may wait for its prefix."""
        self._note(kv, is_working=True)

    def ready(self, kv: SequenceKV, *, is_working: bool = True) -> None:
        """Note that the KV of all tokens that a sequence holds now is complete."""
        self._note(kv, is_working=is_working, ready=kv.num_tokens)

    def lend_only(self, kv: SequenceKV, num_tokens: int) -> None:
        """Keep what lies behind the first `num_tokens` of a sequence from other sequences."""
        if isinstance(kv, Arena):
            with self._changed:
                lender = self._lenders[kv]
                held = lender.resident
                lender.resident = Resident(held.namespace, held.token_ids[:num_tokens])
                self._changed.notify_all()

    def _note(self, kv: SequenceKV, *, is_working: bool, ready: int = 0) -> None:
        if isinstance(kv, Arena):
            with self._changed:
                lender = self._lenders[kv]
                lender.is_working = is_working
                lender.ready = max(lender.ready, min(ready, len(lender.resident.token_ids)))
                self._changed.notify_all()

    def is_apart(self, kv: SequenceKV) -> bool:
        """Tell whether a sequence neither lends nor borrows."""
        lender = self._lenders.get(kv) if isinstance(kv, Arena) else None
        return lender is not None and not lender.may_lend

    def close(self, kv: SequenceKV, resident: Resident = NOBODY) -> None:
        """Take a sequence's KV back; what others read of it stays as it is."""
        with self._changed:
            if isinstance(kv, Arena):
                lender = self._lenders[kv]
                lender.is_open = lender.is_working = False
                lender.ready = min(lender.ready, len(resident.token_ids))
                lender.resident = resident
                self._pool.give(kv, resident)
                self._forget_unless_lent(lender)
            else:
                self._borrowed.remove(kv)
                self._take_back(self._lenders[kv.lender], kv.lent)
            self._changed.notify_all()

    def _take_back(self, lender: _Lender, num_tokens: int) -> None:
        # After a change of hands the arena has another lender, with the same loans.
        lender = self._lenders[lender.arena]
        lender.take_back(num_tokens)
        self._forget_unless_lent(lender)

    def _forget_unless_lent(self, lender: _Lender) -> None:
        if not lender.is_open and not lender.lent:
            del self._lenders[lender.arena]


def _shared(lender: _Lender, wanted: Resident) -> int:
    """Count the leading tokens of `wanted` that a lender has or will have, all but one at most."""
    held = lender.resident
    if held.namespace != wanted.namespace or not lender.may_lend:
        return 0
    most = min(len(held.token_ids), len(wanted.token_ids) - 1)
    if not lender.is_open:
        most = min(most, lender.ready)
    differ = np.flatnonzero(held.token_ids[:most] != wanted.token_ids[:most])
    return int(differ[0]) if len(differ) else max(most, 0)
