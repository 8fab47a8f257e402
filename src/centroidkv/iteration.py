"""Running a synchronous stream under asyncio, so that a cancelled task stops the decoding."""

import asyncio
import contextvars
import functools
from collections.abc import AsyncGenerator, Callable, Generator, Iterator
from typing import TypeVar

__all__ = ["begun_late", "iterate"]

T = TypeVar("T")
_END = object()


async def iterate(iterator: Iterator[T]) -> AsyncGenerator[T, None]:
    """Yield from a blocking iterator without blocking the loop; close it when no longer wanted."""
    loop = asyncio.get_running_loop()
    pending: asyncio.Future[T | object] | None = None
    try:
        while True:
            step = functools.partial(contextvars.copy_context().run, _step, iterator)
            pending = loop.run_in_executor(None, step)
            item = await asyncio.shield(pending)
            if item is _END:
                return
            yield item  # type: ignore[misc]
    finally:
        if pending is None or pending.done():
            _close(iterator)
        else:
            # The step under way cannot be interrupted; the stream ends right after it.
            pending.add_done_callback(lambda _: _close(iterator))


def begun_late(begin: Callable[[], Iterator[T]]) -> Generator[T]:
    """Return an iterator that is only made with its first step, and so where that step runs."""
    yield from begin()


def _step(iterator: Iterator[T]) -> T | object:
    return next(iterator, _END)


def _close(iterator: Iterator[T]) -> None:
    if isinstance(iterator, Generator):
        iterator.close()
