"""Ending in good order when a process is told to: SIGTERM from a supervisor, or another signal.

Owns what happens between the signal and the end. The engine is closed by a thread of its own,
since a signal comes in the middle of anything, and whatever it interrupts may hold a lock.
"""

import logging
import os
import signal
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from types import FrameType

from centroidkv.engine import Engine
from centroidkv.errors import ConfigError
from centroidkv.settings import is_number, require

_log = logging.getLogger("centroidkv")

# How long answers that are cancelled may take to notice: one forward.
CANCEL_S = 5.0

__all__ = ["Terminated", "close_on_signals", "interrupted_by_sigterm"]


def close_on_signals(
    engine: Engine, *, grace_s: float = 10.0, signals: Sequence[int] = (signal.SIGTERM,)
) -> None:
    """Close an engine when the process is told to end, and then let the signal take its course.

    New requests are refused with `EngineClosing`; those under way have `grace_s` seconds to end,
    then they are cancelled. What they computed is kept, and all that is queued is written. After
    that the signal is sent again to whoever was there for it before: by default it ends the
    process. A second signal meanwhile does so at once. For all tenants of the engine.

    Raises:
        ConfigError: This is not the main thread, where signals arrive, or the time is no number.
    """
    require(
        is_number(grace_s) and grace_s >= 0, f"grace_s must be 0 seconds or more, not {grace_s!r}"
    )
    if threading.current_thread() is not threading.main_thread():
        raise ConfigError("close_on_signals must be called in the main thread, where signals come")
    for number in signals:
        _install(engine, number, grace_s)


def _install(engine: Engine, number: int, grace_s: float) -> None:
    before = signal.getsignal(number)

    def end(number: int, _: FrameType | None) -> None:
        signal.signal(number, before if before is not None else signal.SIG_DFL)
        threading.Thread(
            target=_close, args=(engine, number, grace_s), name="centroidkv-close"
        ).start()

    signal.signal(number, end)


def _close(engine: Engine, number: int, grace_s: float) -> None:
    requests = engine.store.requests
    try:
        requests.shut()
        if not requests.wait(grace_s):
            requests.cancel()
            requests.wait(CANCEL_S)
        engine.close()
    except Exception:  # noqa: BLE001 - the process ends in any case
        _log.exception("the engine was not closed in good order")
    finally:
        os.kill(os.getpid(), number)


class Terminated(KeyboardInterrupt):
    """SIGTERM, where it interrupts as Ctrl-C does."""


@contextmanager
def interrupted_by_sigterm() -> Iterator[None]:
    """Let SIGTERM unwind the body like Ctrl-C: for commands, which run in the main thread.

    Raises:
        Terminated: The signal came.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = signal.signal(signal.SIGTERM, _raise)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


def _raise(_: int, __: FrameType | None) -> None:
    raise Terminated
