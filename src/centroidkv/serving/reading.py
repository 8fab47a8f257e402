"""Threads that load the blocks of one request while its own thread computes.

Owns the lock between the two sides. A read that hangs holds nobody: its thread is left behind, a
daemon that ends with its read, and what it still brings goes to the memory tier for the next
request.
"""

import threading
from collections.abc import Callable, Mapping
from typing import TypeAlias

from centroidkv.serving.meeting import Append, Claim, Compute, Meeting, Wait
from centroidkv.types import KVBlock

Load: TypeAlias = Callable[[Claim], KVBlock | None]

__all__ = ["Readers"]

# How long to wait before the policy is asked again: bandwidth may have changed.
_ASK_AGAIN_S = 0.05


class Readers:
    """Loads what a meeting hands out, so many blocks at a time. A context manager.

    Args:
        meeting: Says which blocks.
        load: Returns a block, or None when it cannot be had; may raise.
        held: Blocks that are there already, by number.
        num_threads: How many blocks are loaded at a time.
    """

    def __init__(
        self, meeting: Meeting, load: Load, *, held: Mapping[int, KVBlock], num_threads: int
    ) -> None:
        self._meeting = meeting
        self._load = load
        self._changed = threading.Condition()
        self._blocks = dict(held)
        for number in held:
            meeting.arrived(number)
        self.levels: dict[int, str] = {}  # of the blocks loaded, by number
        self.error: Exception | None = None
        self._threads = [
            threading.Thread(target=self._run, name="centroidkv-read", daemon=True)
            for _ in range(num_threads)
        ]

    def __enter__(self) -> "Readers":
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        with self._changed:
            self._meeting.abandon()

    def next(self) -> Append | Compute | None:
        """Return what to do next, as soon as there is something; None when all is done."""
        with self._changed:
            while isinstance(move := self._meeting.next(), Wait):
                self._changed.wait(min(move.seconds, _ASK_AGAIN_S))
            return move

    def take(self, number: int) -> KVBlock:
        """Hand a loaded block over."""
        with self._changed:
            return self._blocks.pop(number)

    def _run(self) -> None:
        while True:
            with self._changed:
                claim = self._meeting.claim()
            if claim is None:
                return
            block = None
            try:
                block = self._load(claim)
            except Exception as error:  # noqa: BLE001 - it costs time, not the answer
                self.error = error
            with self._changed:
                if block is None:
                    self._meeting.failed(claim.number)
                else:
                    self._blocks[claim.number] = block
                    self.levels[claim.number] = claim.level
                    self._meeting.arrived(claim.number)
                self._changed.notify_all()
