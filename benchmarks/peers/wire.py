"""The pipe between the race and a worker: one JSON object a line each way.

Standard library only. A worker that is not asked is blocked reading its pipe and computes nothing.
What its libraries print goes to standard error, never into the pipe.
"""

import json
import os
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

Row = dict[str, Any]

__all__ = ["PeerFailed", "Remote", "Row", "serve"]


class PeerFailed(RuntimeError):
    """A worker ended or could not do what it was asked."""


class Remote:
    """A worker, seen from the race.

    Args:
        name: What it is called in results.
        command: The program and its arguments; it calls `serve`.
        settings: What it is opened with.
        env: Its whole environment.
        log: Where its standard error goes.
    """

    def __init__(
        self,
        name: str,
        command: Sequence[str],
        settings: Mapping[str, Any],
        *,
        env: Mapping[str, str],
        log: Path,
    ) -> None:
        self.name = name
        self._log = log
        log.parent.mkdir(parents=True, exist_ok=True)
        started = time.perf_counter()
        with log.open("wb") as errors:
            self._child = subprocess.Popen(
                [*command, json.dumps(settings)],
                stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=errors, env=dict(env),
            )  # fmt: skip
        try:
            self.opened = self._read()
        except PeerFailed:
            self.close()
            raise
        self.loading_s = time.perf_counter() - started

    def call(self, op: str, **arguments: Any) -> Row:
        """Let the worker do one thing and wait for its answer.

        Raises:
            PeerFailed: It raised, or it is gone.
        """
        pipe = self._child.stdin
        assert pipe is not None
        try:
            pipe.write(json.dumps({"op": op, **arguments}).encode() + b"\n")
            pipe.flush()
        except OSError as error:
            raise PeerFailed(f"{self.name} is gone; see {self._log}") from error
        return self._read()

    def _read(self) -> Row:
        pipe = self._child.stdout
        assert pipe is not None
        line = pipe.readline()
        if not line:
            raise PeerFailed(f"{self.name} ended; see {self._log}")
        answer: Row = json.loads(line)
        if "error" in answer:
            raise PeerFailed(f"{self.name}: {answer['error']}; see {self._log}")
        return answer

    def close(self) -> None:
        """Let the worker end, and wait for it."""
        for pipe in (self._child.stdin, self._child.stdout):
            if pipe is not None:
                pipe.close()
        try:
            self._child.wait(30)
        except subprocess.TimeoutExpired:
            self._child.kill()
            self._child.wait()


def serve(open_peer: Callable[..., Any]) -> None:
    """Answer the race until it closes the pipe.

    `open_peer` takes the settings as keyword arguments; of what it returns, each method named
    `op_NAME` is one thing that may be asked for. It returns an object that goes back as JSON.
    """
    answers = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)

    def answer(work: Callable[[], Row]) -> bool:
        try:
            told = work()
        except Exception as error:  # noqa: BLE001 - it is told to the race, which decides
            import traceback

            traceback.print_exc()
            told = {"error": f"{type(error).__name__}: {error}".splitlines()[0]}
        told["peak_mib"] = _peak_mib()
        answers.write(json.dumps(told) + "\n")
        answers.flush()
        return "error" not in told

    opened: list[Any] = []

    def opening() -> Row:
        opened.append(open_peer(**json.loads(sys.argv[-1])))
        return {"versions": getattr(opened[0], "versions", {})}

    if not answer(opening):
        return
    for line in sys.stdin:
        asked = json.loads(line)
        work = getattr(opened[0], "op_" + asked.pop("op"))
        answer(lambda work=work, asked=asked: work(**asked))
    closing = getattr(opened[0], "close", None)
    if closing is not None:
        closing()


def _peak_mib() -> float | None:
    """Return the most memory this process has had; `getrusage` would tell its parent's as well."""
    status = Path("/proc/self/status")
    lines = status.read_text().splitlines() if status.exists() else []
    peaks = [int(line.split()[1]) / 1024 for line in lines if line.startswith("VmHWM")]
    return peaks[0] if peaks else None
