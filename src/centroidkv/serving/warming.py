"""A warming run: the user's own chain renders the very tokens, and leaves before it answers.

A ContextVar set around the chain's call is seen by its retriever and its model. The model call
whose prompt holds the pins ends the run by a private BaseException, so that nothing reaches the
user's parsers, retries, fallbacks or answer caches.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, field

from centroidkv.serving.outcome import Layout
from centroidkv.types import Cluster, Passage, Prompt

__all__ = ["WarmingDone", "WarmingRun", "current_warming", "warming"]


class WarmingDone(BaseException):
    """Ends a warming run; not an error, so no handler of errors may catch it."""


@dataclass(slots=True)
class WarmingRun:
    """One member question of one cluster on its way through the user's chain."""

    cluster: Cluster
    pinned: list[Passage]
    prompts: list[tuple[Prompt, Layout]] = field(default_factory=list)
    other_calls: int = 0

    def offer(self, prompt: Prompt, where: Layout) -> None:
        """Take a prompt; if it holds the pins, end the run.

        Raises:
            WarmingDone: The prompt is the one that will be answered.
        """
        if where.pins_end == 0 or any(p.text.strip() not in prompt.text for p in self.pinned):
            self.other_calls += 1
            return
        self.prompts.append((prompt, where))
        raise WarmingDone


_current: ContextVar[WarmingRun | None] = ContextVar("centroidkv_warming", default=None)


def current_warming() -> WarmingRun | None:
    """Return the warming run that this call belongs to, if any."""
    return _current.get()


@contextmanager
def warming(run: WarmingRun) -> Iterator[WarmingRun]:
    """Mark everything called inside as part of a warming run."""
    token = _current.set(run)
    try:
        yield run
    except WarmingDone:
        pass
    finally:
        _current.reset(token)
