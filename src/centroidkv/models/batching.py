"""Continuous batching: requests that wait for a forward at the same time share one.

Owns whose turn it is. There is no thread for it: a caller that finds nobody running takes the
lead, runs whatever waits, its own tokens among it, and hands the lead to one who came meanwhile
(flat combining; D. Hendler et al., SPAA 2010). Sequences join and leave at any forward, as in
G. Yu et al., "Orca" (OSDI 2022). Knows nothing of models.
"""

import threading
import time
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import torch

from centroidkv.models.lending import SequenceKV

__all__ = ["Batcher", "Job"]

# One forward per this many prompt tokens: bounds the memory of long prompts.
PREFILL_TOKENS = 2048
# While other sequences are open, which wait for the forward to end.
SHARED_PREFILL_TOKENS = 256
# New tokens of one forward that several share: others wait for it to end.
MOST_TOKENS = 512
# How long to wait for those who were in the last forward, as a part of what it took.
_WINDOW = 0.1


@dataclass(slots=True, eq=False)
class Job:
    """New tokens of one sequence, and in the end the logits of the last `rows` of them.

    One that is `apart` shares no forward.
    """

    token_ids: Sequence[int]
    kv: SequenceKV
    rows: int
    apart: bool = False
    logits: torch.Tensor | None = None
    error: Exception | None = None
    wake: threading.Event = field(default_factory=threading.Event)

    @property
    def is_done(self) -> bool:
        return self.logits is not None or self.error is not None

    def result(self) -> torch.Tensor:
        if self.error is not None:
            raise self.error
        assert self.logits is not None
        return self.logits


class Batcher:
    """Brings the jobs of many threads into forwards.

    Args:
        run: Runs jobs in one forward and gives each its logits or its error.
        most: Returns how many sequences may share a forward; asked when several wait.
    """

    def __init__(self, run: Callable[[Sequence[Job]], None], most: Callable[[], int]) -> None:
        self._run = run
        self._most = most
        # An answer that was left unread is closed by the garbage collector, in whatever thread
        # that runs, also in one that holds this lock.
        self._lock = threading.RLock()
        self._arrived = threading.Condition(self._lock)
        self._waiting: list[Job] = []
        self._expected: set[SequenceKV] = set()
        self._window_s = 0.0
        self._is_led = False
        self._open: set[SequenceKV] = set()
        self.sizes: Counter[int] = Counter()  # forwards by how many sequences they ran

    @property
    def num_open(self) -> int:
        """How many sequences are open."""
        return len(self._open)

    @property
    def prefill_tokens(self) -> int:
        """How many tokens of a prompt may be run in one forward now."""
        return PREFILL_TOKENS if self.num_open <= 1 else SHARED_PREFILL_TOKENS

    @property
    def num_waiting(self) -> int:
        """How many jobs wait for a forward."""
        return len(self._waiting)

    def join(self, kv: SequenceKV) -> None:
        """Note a sequence that will run."""
        with self._lock:
            self._open.add(kv)

    def leave(self, kv: SequenceKV) -> None:
        """Forget a sequence; nobody waits for it any more."""
        with self._lock:
            self._open.discard(kv)
            self._arrive(kv)

    def submit(self, job: Job) -> torch.Tensor:
        """Run a job, together with those of other threads; return its logits."""
        with self._lock:
            self._waiting.append(job)
            self._arrive(job.kv)
            is_led, self._is_led = self._is_led, True
        if is_led:
            try:
                job.wake.wait()
            except BaseException:
                self._withdraw(job)
                raise
        if job.is_done:
            return job.result()
        try:
            while not job.is_done:
                self._lead()
        finally:
            self._hand_over(job)
        return job.result()

    def _arrive(self, kv: SequenceKV) -> None:
        self._expected.discard(kv)
        if not self._expected:
            self._arrived.notify_all()

    def _lead(self) -> None:
        """Run one forward for those who wait."""
        with self._lock:
            # After a forward all its sequences choose their next tokens, at nearly the same time.
            self._arrived.wait_for(lambda: not self._expected, self._window_s)
            is_lone = len(self._waiting) == 1
        most = 1 if is_lone else self._most()
        with self._lock:
            batch = self._next(most)
            self.sizes[len(batch)] += 1
        begin = time.perf_counter()
        try:
            self._run(batch)
        except BaseException:
            self._put_back(batch)
            raise
        with self._lock:
            self._window_s = _WINDOW * (time.perf_counter() - begin)
            self._expected = {j.kv for j in batch if j.kv in self._open}
        for job in batch:
            job.wake.set()

    def _next(self, most: int) -> list[Job]:
        """Take the jobs that waited longest, as many as one forward may run."""
        num, tokens = 0, 0
        for job in self._waiting[:most]:
            tokens += len(job.token_ids)
            if num and (tokens > MOST_TOKENS or job.apart or self._waiting[0].apart):
                break
            num += 1
        batch, self._waiting = self._waiting[:num], self._waiting[num:]
        return batch

    def _put_back(self, batch: Sequence[Job]) -> None:
        """After a forward that was broken off, as by Ctrl-C, let the others wait on."""
        with self._lock:
            self._waiting = [*(j for j in batch if not j.is_done), *self._waiting]
        for job in batch:
            if job.is_done:
                job.wake.set()

    def _hand_over(self, job: Job) -> None:
        with self._lock:
            self._waiting = [j for j in self._waiting if j is not job]
            if self._waiting:
                self._waiting[0].wake.set()
            else:
                self._is_led = False

    def _withdraw(self, job: Job) -> None:
        """Take a job back whose caller was broken off while it waited."""
        with self._lock:
            is_waiting = job in self._waiting
            was_chosen = is_waiting and job.wake.is_set()
            self._waiting = [j for j in self._waiting if j is not job]
        if was_chosen:
            self._hand_over(job)
        elif not is_waiting:
            job.wake.wait()
