"""What the stress scripts share: small real parts, and work in forked children.

A child costs milliseconds, since everything is imported before the fork and no thread has been
started. It tells what it found as JSON over a pipe, so that a crash, a hang and an exception are
three different things.
"""

import json
import os
import select
import signal
import sys
import time
import traceback
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NoReturn

os.environ.setdefault("OMP_NUM_THREADS", "1")
sys.path.insert(0, str(Path(__file__).parents[1]))

import chromadb  # noqa: F401  # imported before any fork
import torch

from centroidkv import Engine
from centroidkv.models.loading import wrap_model
from small_parts import HashEmbedder, make_llama, make_tokenizer
from word_bank import ask

torch.set_num_threads(1)

__all__ = ["NEW_QUESTIONS", "Done", "answers_differ", "begin", "finish", "open_engine", "run"]

MODEL = wrap_model(make_llama(), make_tokenizer())
NEW_QUESTIONS = [
    "is my lost card blocked at once",
    "when does a wire to another country arrive",
    "charge for repaying a loan early please",
    "how many days until a new card arrives",
]


@dataclass(frozen=True, slots=True)
class Done:
    """How a child ended: what it returned, or the error it raised, or the signal that killed it."""

    value: Any = None
    error: str = ""
    signal: int = 0
    is_hung: bool = False

    @property
    def is_well(self) -> bool:
        return not (self.error or self.signal or self.is_hung)


def open_engine(path: Path, **settings: Any) -> Engine:
    """Open a store with the small model and embedder."""
    return Engine.open(path, model=MODEL, embedder=HashEmbedder(), **settings)


def answers_differ(engine: Engine, questions: list[str]) -> list[str]:
    """Ask questions with reuse and without; return those whose greedy tokens differ."""
    return [
        question
        for question in questions
        if ask(engine, question).token_ids != ask(engine, question, reuse="off").token_ids
    ]


def begin(work: Callable[[], Any], *, log: Path | None = None) -> tuple[int, int]:
    """Start work in a child; return its process id and the pipe to `finish` it with."""
    reader, writer = os.pipe()
    child = os.fork()
    if not child:
        os.close(reader)
        _be_the_child(work, writer, log)
    os.close(writer)
    return child, reader


def _be_the_child(work: Callable[[], Any], writer: int, log: Path | None) -> NoReturn:
    target = os.open(log or os.devnull, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
    os.dup2(target, 1)
    os.dup2(target, 2)
    told: dict[str, Any] = {}
    try:
        told["value"] = work()
    except BaseException as error:  # noqa: BLE001 - told to the parent, whatever it is
        told["error"] = f"{type(error).__name__}: {error}"
        traceback.print_exc()
    with os.fdopen(writer, "w") as pipe:
        json.dump(told, pipe)
    os._exit(0)


def finish(child: int, reader: int, timeout_s: float) -> Done:
    """Wait for a child, at most so long, and return how it ended."""
    raw, deadline, is_hung = b"", time.monotonic() + timeout_s, False
    while True:
        left_s = deadline - time.monotonic()
        ready = select.select([reader], [], [], max(0.0, left_s))[0]
        if not ready:
            is_hung = True
            os.kill(child, signal.SIGKILL)
            break
        piece = os.read(reader, 1 << 16)
        if not piece:
            break
        raw += piece
    os.close(reader)
    _, status = os.waitpid(child, 0)
    if is_hung:
        return Done(is_hung=True)
    if os.WIFSIGNALED(status):
        return Done(signal=os.WTERMSIG(status))
    return Done(**json.loads(raw)) if raw else Done(error=f"exit status {status}")


def run(work: Callable[[], Any], *, timeout_s: float = 30.0, log: Path | None = None) -> Done:
    """Do work in a child and wait for it."""
    return finish(*begin(work, log=log), timeout_s)
