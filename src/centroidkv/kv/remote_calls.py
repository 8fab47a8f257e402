"""Calls to a remote that may be slow, hang, refuse or be gone: time is bounded, nothing raised.

Owns deadlines, retries, the circuit breaker, the counters and the warnings. Does not know what is
asked.
"""

import logging
import random
import threading
import time
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Generic, TypeVar

from centroidkv.breaker import Breaker

_log = logging.getLogger("centroidkv")

T = TypeVar("T")
FIRST_PAUSE_S = 0.05

__all__ = ["Answer", "RemoteCalls"]


@dataclass(frozen=True, slots=True)
class Answer(Generic[T]):
    """What a remote answered; that something is not there is an answer too."""

    value: T


class RemoteCalls:
    """Asks one remote. Safe for many threads.

    Args:
        name: What the remote is called in warnings.
        timeout_s: How long `run` waits, retries included.
        retries: How often a call that failed is tried again.
        breaker: Keeps calls back while the remote fails.
        count: Notes a fault by its counter's name.
    """

    def __init__(
        self,
        name: str,
        *,
        timeout_s: float,
        retries: int,
        breaker: Breaker,
        count: Callable[[str], None],
    ) -> None:
        self.breaker = breaker
        self.faults: Counter[str] = Counter()
        self._lock = threading.Lock()
        self._name = name
        self._timeout_s = timeout_s
        self._retries = retries
        self._count = count

    def run(
        self, calls: Sequence[Callable[[], T]], *, timeout_s: float | None = None
    ) -> list[Answer[T] | None]:
        """Make calls at the same time; None stands for one that was not answered."""
        if not calls or not self.breaker.allows():
            return [None] * len(calls)
        deadline = time.monotonic() + (timeout_s or self._timeout_s)
        tries = waiting = [_Try(call) for call in calls]
        for attempt in range(self._retries + 1):
            for one in waiting:
                one.begin()
            for one in waiting:
                one.wait(deadline - time.monotonic())
            waiting = [t for t in waiting if t.may_be_repeated]
            left_s = deadline - time.monotonic()
            if not waiting or left_s <= 0 or attempt == self._retries:
                break
            time.sleep(min(left_s, FIRST_PAUSE_S * 2**attempt * (0.5 + random.random())))  # noqa: S311
        self._judge(tries)
        return [t.answer for t in tries]

    def run_one(self, call: Callable[[], T]) -> Answer[T] | None:
        """Make one call."""
        return self.run([call])[0]

    def fault(self, kind: str, error: object) -> None:
        """Count a fault; warn of the first of its kind."""
        with self._lock:
            self.faults[kind] += 1
            is_first = self.faults[kind] == 1
        self._count(f"remote_{kind}")
        if is_first:
            _log.warning("remote %s: %s (%s); answers go on without it", self._name, kind, error)

    def _judge(self, tries: Sequence["_Try[T]"]) -> None:
        failed = [t for t in tries if t.answer is None]
        if not failed:
            self.breaker.succeeded()
            return
        self.breaker.failed()
        self.fault(failed[0].kind, failed[0].error or "no answer in time")


class _Try(Generic[T]):
    """One call, in a thread of its own that nobody has to wait for: a call may hang for ever."""

    def __init__(self, call: Callable[[], T]) -> None:
        self._call = call
        self._done = threading.Event()
        self.answer: Answer[T] | None = None
        self.error: Exception | None = None

    def begin(self) -> None:
        self._done.clear()
        self.error = None
        try:
            threading.Thread(target=self._run, name="centroidkv-remote", daemon=True).start()
        except RuntimeError as error:  # there are too many, or the interpreter ends
            self.error = error
            self._done.set()

    def _run(self) -> None:
        try:
            self.answer = Answer(self._call())
        except Exception as error:  # noqa: BLE001 - whatever it is, it is not the answer's
            self.error = error
        self._done.set()

    def wait(self, seconds: float) -> None:
        self._done.wait(max(0.0, seconds))

    @property
    def may_be_repeated(self) -> bool:
        return self.error is not None and not isinstance(self.error, PermissionError)

    @property
    def kind(self) -> str:
        if self.error is None:
            return "timeouts"
        return "denied" if isinstance(self.error, PermissionError) else "failures"
