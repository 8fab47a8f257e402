"""Following one request from outside: when it began, how it ended, what it measured.

Owns the clock of an observed request. Does not know who is told. With nobody looking on, an answer
is passed on as it is.
"""

import contextvars
import time
import uuid
from collections.abc import Callable, Generator, Iterator
from contextlib import closing
from dataclasses import replace
from typing import cast

from centroidkv.errors import GenerationTimeout, QueueFull
from centroidkv.observing import NO_OBSERVER, Ended, Observer, RequestSeen, RouteSeen
from centroidkv.routing.router import Router
from centroidkv.serving.request import Request
from centroidkv.serving.warming import current_warming
from centroidkv.types import Chunk, Route, Usage

__all__ = ["note_route", "watched"]

Answer = Callable[[Request], Iterator[Chunk]]


def watched(observer: Observer, request: Request, answer: Answer) -> Iterator[Chunk]:
    """Answer a request, and tell the observer how it ended. Warming is not observed."""
    if observer is NO_OBSERVER or current_warming() is not None:
        return answer(request)
    observer.began()
    watch = _Watch(observer)
    try:
        pieces = answer(replace(request, told=watch.note))
    except BaseException as error:
        watch.end(_ended_by(error))
        raise
    return watch.follow(cast("Generator[Chunk]", pieces))


class _Watch:
    """One request under way."""

    def __init__(self, observer: Observer) -> None:
        self._observer = observer
        self._id = uuid.uuid4().hex
        self._context = contextvars.copy_context()
        self._began_ns = time.time_ns()
        # Durations are taken from a clock that nobody sets.
        self._began_s = time.perf_counter()
        self._usage: Usage | None = None
        self._is_over = False

    def note(self, usage: Usage) -> None:
        """Take what was measured so far."""
        self._usage = usage

    def follow(self, pieces: Generator[Chunk]) -> Iterator[Chunk]:
        try:
            with closing(pieces):
                for chunk in pieces:
                    if chunk.completion is not None:
                        self.note(chunk.completion.usage)
                        # Now, as the last piece may be left unread.
                        self.end("answered")
                    yield chunk
        except BaseException as error:
            self.end(_ended_by(error))
            raise

    def end(self, ended: Ended) -> None:
        if self._is_over:
            return
        self._is_over = True
        took_ns = int((time.perf_counter() - self._began_s) * 1e9)
        self._observer.answered(
            RequestSeen(
                id=self._id,
                ended=ended,
                usage=self._usage,
                began_ns=self._began_ns,
                ended_ns=self._began_ns + took_ns,
                context=self._context,
            )
        )


def _ended_by(error: BaseException) -> Ended:
    # An answer that is closed may fail at that: it may still be the garbage collector's doing.
    if isinstance(error, GeneratorExit) or isinstance(error.__context__, GeneratorExit):
        return "abandoned"
    if isinstance(error, GenerationTimeout):
        return "timed_out"
    return "refused" if isinstance(error, QueueFull) else "failed"


def note_route(observer: Observer, router: Router, route: Route) -> None:
    """Tell the observer of a route that has just been found."""
    if observer is NO_OBSERVER or current_warming() is not None:
        return
    took_ns = int((route.embed_s + route.route_s) * 1e9)
    observer.routed(
        RouteSeen(
            index=router.routes_by if route.plan and route.embedding.size else "none",
            is_admitted=route.is_admitted,
            began_ns=time.time_ns() - took_ns,
            embed_s=route.embed_s,
            route_s=route.route_s,
            context=contextvars.copy_context(),
        )
    )
