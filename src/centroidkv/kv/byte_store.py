"""The port of a remote: named bytes, and nothing of what they mean."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Protocol

__all__ = ["ByteStore", "Entry"]


@dataclass(frozen=True, slots=True)
class Entry:
    """One entry of a remote's listing; `written_s` is the remote's own clock."""

    name: str
    num_bytes: int
    written_s: float


class ByteStore(Protocol):
    """Holds bytes by name. Safe for many threads.

    Every method raises `PermissionError` where access is denied, and `OSError` for whatever else
    keeps it from answering. That something is not there is no error.
    """

    names_at_once: int
    """How many names `sizes` takes in one round trip."""

    def sizes(self, names: Sequence[str]) -> list[int | None]:
        """Return how many bytes each name holds, None where there is nothing."""

    def read(self, name: str, most_bytes: int) -> bytes | None:
        """Return what a name holds, at most one byte more than `most_bytes` of it."""

    def write(self, name: str, raw: bytes) -> None:
        """Let a name hold bytes: all of them, or what it held before."""

    def delete(self, names: Sequence[str]) -> None:
        """Forget names, as far as they are there."""

    def listing(self) -> Iterator[Entry]:
        """Yield everything that is there."""

    def close(self) -> None:
        """Release connections."""
