"""What an export tells and what a forgetting leaves behind. Knows no place."""

from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, field
from typing import Any, Protocol

from centroidkv.privacy.wanted import Wanted

__all__ = ["Export", "ForgetReport", "Held", "Place"]


@dataclass(frozen=True, slots=True)
class Held:
    """One thing that is held: in which place, under which key, its text, and more about it."""

    place: str
    key: str
    text: str
    about: Mapping[str, Any] = field(default_factory=dict)


class Place(Protocol):
    """One place that holds what requests left.

    Its methods raise `OSError`, `sqlite3.Error` or `CentroidKVError` where the place fails.
    """

    @property
    def name(self) -> str: ...

    def find(self, wanted: Wanted) -> list[Held]:
        """Return what is held of this tenant and wanted."""

    def forget(self, wanted: Wanted) -> int:
        """Remove it; return how many things that were. What is killed half-way can be repeated."""

    def scrub(self) -> str | None:
        """Let nothing of it remain in files; return what prevents that, None for nothing."""


@dataclass(frozen=True, slots=True)
class Export:
    """What is held about a tenant, a question or a passage. `problems` are places not searched."""

    tenant: str
    about: str
    entries: tuple[Held, ...]
    problems: tuple[str, ...] = ()

    @property
    def counts(self) -> dict[str, int]:
        """How many things each place holds."""
        return count_by_place(self.entries)

    def as_dict(self) -> dict[str, Any]:
        """Return it for JSON, with the entries of each place together."""
        places: dict[str, list[dict[str, Any]]] = {}
        for held in self.entries:
            entry = asdict(held)
            places.setdefault(entry.pop("place"), []).append(entry)
        return {
            "tenant": self.tenant,
            "about": self.about,
            "counts": self.counts,
            "problems": list(self.problems),
            "places": places,
        }


@dataclass(frozen=True, slots=True)
class ForgetReport:
    """What was forgotten, by place, and what a second search still found.

    `problems` say what could not be done, or not be looked at. It is tried again when the store is
    opened next.
    """

    tenant: str
    forgotten: dict[str, int]
    left: dict[str, int]
    problems: tuple[str, ...]
    seconds: float

    @property
    def is_proven(self) -> bool:
        """Whether every place was searched again, nothing was found, and no file holds a rest."""
        return not self.left and not self.problems

    def as_dict(self) -> dict[str, Any]:
        return {**asdict(self), "is_proven": self.is_proven}


def count_by_place(entries: Iterable[Held]) -> dict[str, int]:
    """Count things by place."""
    return dict(Counter(held.place for held in entries))
