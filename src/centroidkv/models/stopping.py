"""Stop strings in a stream: text that may become one is held back until it is decided."""

from collections.abc import Sequence

__all__ = ["StopScanner"]


class StopScanner:
    """Passes text on until a stop string occurs."""

    def __init__(self, stop: Sequence[str]) -> None:
        self._stop = tuple(stop)
        self._held = ""
        self.is_stopped = False

    def push(self, text: str) -> str:
        """Take new text; return what is certain to be part of the answer."""
        self._held += text
        undecided = len(self._held) - self._undecided()
        found = self._first_stop()
        if found is not None and found <= undecided:
            return self._end_at(found)
        # A longer stop string may still begin before the one that is complete.
        return self._release(undecided)

    def flush(self) -> str:
        """Return what was held back, once no more text can come."""
        if self.is_stopped:
            return ""
        found = self._first_stop()
        return self._release(len(self._held)) if found is None else self._end_at(found)

    def _first_stop(self) -> int | None:
        return min((at for at in (self._held.find(s) for s in self._stop) if at >= 0), default=None)

    def _end_at(self, place: int) -> str:
        self.is_stopped = True
        return self._release(place, drop_rest=True)

    def _release(self, length: int, *, drop_rest: bool = False) -> str:
        out = self._held[:length]
        self._held = "" if drop_rest else self._held[length:]
        return out

    def _undecided(self) -> int:
        """Length of the longest end of the held text that begins a stop string."""
        longest = 0
        for stop in self._stop:
            for size in range(min(len(stop) - 1, len(self._held)), longest, -1):
                if self._held.endswith(stop[:size]):
                    longest = size
                    break
        return longest
