"""How an answer is decoded: validated, frozen settings."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TypedDict

from centroidkv.settings import Settings, is_count, is_number, require

__all__ = ["Sampling", "SamplingOptions"]


@dataclass(frozen=True, slots=True)
class Sampling(Settings):
    """How an answer is decoded. Greedy unless `temperature` is above zero.

    After `timeout_s` seconds without a complete answer, the request ends with an error.
    """

    max_tokens: int = 256
    temperature: float = 0.0
    top_p: float = 1.0
    seed: int | None = None
    stop: tuple[str, ...] = ()
    timeout_s: float | None = None

    def __post_init__(self) -> None:
        require(
            is_count(self.max_tokens, 1),
            f"max_tokens must be a whole number of at least 1, not {self.max_tokens!r}",
        )
        require(
            is_number(self.temperature) and 0 <= self.temperature < float("inf"),
            f"temperature must be a number, 0 or more, not {self.temperature!r}",
        )
        require(
            is_number(self.top_p) and 0 < self.top_p <= 1,
            f"top_p must be a number in (0, 1], not {self.top_p!r}",
        )
        require(
            self.seed is None or (is_count(self.seed, 0) and self.seed < 1 << 63),
            f"seed must be a whole number from 0 to 2**63 - 1, or None, not {self.seed!r}",
        )
        require(
            isinstance(self.stop, Sequence) and not isinstance(self.stop, str),
            f"stop must be a list of strings, not {self.stop!r}",
        )
        require(
            self.timeout_s is None or (is_number(self.timeout_s) and self.timeout_s > 0),
            f"timeout must be a number of seconds above 0, or None, not {self.timeout_s!r}",
        )
        object.__setattr__(self, "stop", tuple(self.stop))
        require(
            all(isinstance(s, str) and s for s in self.stop),
            "stop must hold non-empty strings; an empty one would end every answer at once",
        )


class SamplingOptions(TypedDict, total=False):
    """How an answer is decoded; see `Sampling`."""

    max_tokens: int
    temperature: float
    top_p: float
    seed: int | None
    stop: Sequence[str]
    timeout_s: float | None
