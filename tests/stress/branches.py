"""Processes that cost milliseconds: forks of one that has imported torch and made the model.

Each tells how it ended, so that an error, a crash and a hang are three different things. The parent
must not run the model, open a store or start a thread: forks of a process with threads may hang.
"""

import json
import os
import signal
import sys
import tempfile
import time
import traceback
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NoReturn

LOOK_EVERY_S = 0.005

__all__ = ["Branch", "Done", "finished", "in_branch", "run"]


@dataclass(frozen=True, slots=True)
class Done:
    """How a process ended: what it returned, the error it raised, or the signal that killed it."""

    value: Any = None
    error: str = ""
    signal: int = 0
    is_hung: bool = False

    @property
    def is_well(self) -> bool:
        return not (self.error or self.signal or self.is_hung)


class Branch:
    """A function that runs in a process of its own; it returns what JSON can hold.

    With a `log`, what it prints goes there.
    """

    def __init__(self, job: Callable[[], Any], *, log: Path | None = None) -> None:
        handle, name = tempfile.mkstemp(prefix="branch-")
        os.close(handle)
        self._answer = Path(name)
        self._status: int | None = None
        sys.stdout.flush()
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", DeprecationWarning)  # of forks beside threads
            self.pid = os.fork()
        if self.pid == 0:
            self._run(job, log)

    def _run(self, job: Callable[[], Any], log: Path | None) -> NoReturn:
        if log is not None:
            target = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
            os.dup2(target, 1)
            os.dup2(target, 2)
        told: dict[str, Any] = {}
        try:
            told["value"] = job()
        except BaseException as error:  # noqa: BLE001 - told to the parent, whatever it is
            told["error"] = f"{type(error).__name__}: {error}"
            traceback.print_exc()
        self._answer.write_text(json.dumps(told))
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(0)

    def poll(self) -> bool:
        """Tell whether it still runs."""
        if self._status is None:
            done, status = os.waitpid(self.pid, os.WNOHANG)
            self._status = status if done else None
        return self._status is None

    def kill(self) -> None:
        """Kill it, unless it has ended."""
        if self.poll():
            os.kill(self.pid, signal.SIGKILL)

    def done(self, timeout_s: float) -> Done:
        """Wait for its end, at most so long, and return how that was; one that hangs is killed."""
        end = time.monotonic() + timeout_s
        while self.poll():
            if time.monotonic() > end:
                self.kill()
                _, self._status = os.waitpid(self.pid, 0)
                self._answer.unlink()
                return Done(is_hung=True)
            time.sleep(LOOK_EVERY_S)
        text = self._answer.read_text()
        self._answer.unlink()
        assert self._status is not None
        if os.WIFSIGNALED(self._status):
            return Done(signal=os.WTERMSIG(self._status))
        return Done(**json.loads(text)) if text else Done(error=f"exit status {self._status}")

    def result(self, timeout_s: float) -> Any:
        """Wait for its end and return what it returned.

        Raises:
            AssertionError: It failed, was killed, or hangs.
        """
        done = self.done(timeout_s)
        assert done.is_well, done
        return done.value


def run(job: Callable[[], Any], *, timeout_s: float = 30.0, log: Path | None = None) -> Done:
    """Run a function in a process of its own and return how that ended."""
    return Branch(job, log=log).done(timeout_s)


def in_branch(job: Callable[[], Any], *, timeout_s: float = 120) -> Any:
    """Run a function in a process of its own and return what it returned."""
    return Branch(job).result(timeout_s)


def finished(branches: Sequence[Branch], timeout_s: float) -> list[Any]:
    """Wait for all of them."""
    return [branch.result(timeout_s) for branch in branches]
