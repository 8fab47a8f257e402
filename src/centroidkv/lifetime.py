"""Whether an engine may be used: until it is closed, and in the process that opened it alone.

A process that is forked from that one has its files and locks without the threads that write them,
and Chroma's native code waits there for ever.
"""

import os

from centroidkv.errors import ConfigError

__all__ = ["CLOSED", "Lifetime"]

CLOSED = "the engine is closed; open it again with Engine.open(...)"
FORKED = (
    "the engine was opened before this process was forked from another one; open it here, in each "
    "worker (with gunicorn: in post_fork, or without preload_app)"
)


class Lifetime:
    """The lifetime of one engine, from now on."""

    def __init__(self) -> None:
        self.is_over = False
        self._process = os.getpid()

    @property
    def _is_forked(self) -> bool:
        return os.getpid() != self._process

    def require(self) -> None:
        """Refuse what needs an open engine.

        Raises:
            ConfigError: It is closed, or was opened by another process.
        """
        if self._is_forked:
            raise ConfigError(FORKED)
        if self.is_over:
            raise ConfigError(CLOSED)

    def end(self) -> bool:
        """End it; tell whether there is anything to close, which is the opener's alone."""
        was_over, self.is_over = self.is_over, True
        return not was_over and not self._is_forked
