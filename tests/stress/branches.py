"""Processes that cost milliseconds: forks of one that has imported torch and made the model.

The parent must not run the model, open a store or import Chroma: forks of a process with threads
may hang.
"""

import json
import os
import sys
import tempfile
import time
import traceback
import warnings
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

__all__ = ["Branch", "finished", "in_branch"]


class Branch:
    """A function that runs in a process of its own; it returns what JSON can hold."""

    def __init__(self, job: Callable[[], Any]) -> None:
        handle, name = tempfile.mkstemp(prefix="branch-")
        os.close(handle)
        self._answer = Path(name)
        self.is_running = True
        sys.stdout.flush()
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", DeprecationWarning)  # of forks beside threads
            self.pid = os.fork()
        if self.pid == 0:
            self._run(job)

    def _run(self, job: Callable[[], Any]) -> None:
        try:
            self._answer.write_text(json.dumps(job()))
            code = 0
        except BaseException:  # noqa: BLE001 - told by the exit code
            traceback.print_exc()
            code = 1
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)

    def poll(self) -> bool:
        """Tell whether it still runs."""
        if self.is_running:
            done, self._status = os.waitpid(self.pid, os.WNOHANG)
            self.is_running = done == 0
        return self.is_running

    def result(self, timeout_s: float) -> Any:
        """Wait for its end and return what it returned.

        Raises:
            AssertionError: It failed, or hangs.
        """
        end = time.monotonic() + timeout_s
        while self.poll():
            if time.monotonic() > end:
                os.kill(self.pid, 9)
                os.waitpid(self.pid, 0)
                raise AssertionError(f"a process hangs for more than {timeout_s:.0f} s")
            time.sleep(0.01)
        text = self._answer.read_text()
        self._answer.unlink()
        assert self._status == 0, f"a process ended with status {self._status}"
        return json.loads(text)


def in_branch(job: Callable[[], Any], *, timeout_s: float = 120) -> Any:
    """Run a function in a process of its own and return what it returns."""
    return Branch(job).result(timeout_s)


def finished(branches: Sequence[Branch], timeout_s: float) -> list[Any]:
    """Wait for all of them."""
    return [branch.result(timeout_s) for branch in branches]
