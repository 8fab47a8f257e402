"""Validated, frozen settings. An unknown key is an error that names the known ones."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from typing import Any, Self

from centroidkv.errors import ConfigError

__all__ = ["EngineConfig", "PlanConfig", "Sampling"]

MIB = 1 << 20
GIB = 1 << 30


class _Settings:
    """Builds a frozen dataclass from keyword arguments, naming what is wrong."""

    __slots__ = ()

    @classmethod
    def of(cls, settings: Mapping[str, Any]) -> Self:
        known = [f.name for f in fields(cls)]  # type: ignore[arg-type]
        unknown = sorted(set(settings) - set(known))
        if unknown:
            raise ConfigError(f"unknown setting {', '.join(unknown)}; known: {', '.join(known)}")
        return cls(**settings)


def _require(condition: object, message: str) -> None:
    if not condition:
        raise ConfigError(message)


def _is_number(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _is_count(value: object, least: int) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value >= least


@dataclass(frozen=True, slots=True)
class Sampling(_Settings):
    """How an answer is decoded. Greedy unless `temperature` is above zero."""

    max_tokens: int = 256
    temperature: float = 0.0
    top_p: float = 1.0
    seed: int | None = None
    stop: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        _require(
            _is_count(self.max_tokens, 1),
            f"max_tokens must be a whole number of at least 1, not {self.max_tokens!r}",
        )
        _require(
            _is_number(self.temperature) and self.temperature >= 0,
            f"temperature must be a number, 0 or more, not {self.temperature!r}",
        )
        _require(
            _is_number(self.top_p) and 0 < self.top_p <= 1,
            f"top_p must be a number in (0, 1], not {self.top_p!r}",
        )
        _require(
            self.seed is None or _is_count(self.seed, 0),
            f"seed must be a whole number, 0 or more, or None, not {self.seed!r}",
        )
        _require(
            isinstance(self.stop, Sequence) and not isinstance(self.stop, str),
            f"stop must be a list of strings, not {self.stop!r}",
        )
        object.__setattr__(self, "stop", tuple(self.stop))
        _require(
            all(isinstance(s, str) and s for s in self.stop),
            "stop must hold non-empty strings; an empty one would end every answer at once",
        )


@dataclass(frozen=True, slots=True)
class PlanConfig(_Settings):
    """How past questions become clusters and pins.

    `num_clusters=None` takes one cluster for about ten questions. `radius_quantile` is the share
    of a cluster's own members that its radius admits.
    """

    num_clusters: int | None = None
    pca_dim: int = 32
    max_pins: int = 8
    max_pin_tokens: int = 1500
    retrieval_depth: int = 16
    radius_quantile: float = 0.95
    seed: int = 0

    def __post_init__(self) -> None:
        k = self.num_clusters
        _require(
            k is None or _is_count(k, 1),
            f"num_clusters must be a whole number of at least 1, not {k!r}",
        )
        for name in ("pca_dim", "max_pins", "max_pin_tokens", "retrieval_depth"):
            value = getattr(self, name)
            _require(
                _is_count(value, 1), f"{name} must be a whole number of at least 1, not {value!r}"
            )
        _require(
            _is_number(self.radius_quantile) and 0 < self.radius_quantile <= 1,
            f"radius_quantile must be a number in (0, 1], not {self.radius_quantile!r}",
        )
        _require(_is_count(self.seed, 0), f"seed must be a whole number, not {self.seed!r}")


@dataclass(frozen=True, slots=True)
class EngineConfig(_Settings):
    """Budgets, isolation and behaviour of one engine. Budgets are in bytes."""

    memory_budget_bytes: int = GIB
    disk_budget_bytes: int = 20 * GIB
    tenant: str = ""
    chroma: str | None = None
    device: str | None = None
    dtype: str | None = None
    max_records: int = 256
    near_misses: int = 3
    online_radius: float = 0.75
    fit_after: int = 200
    max_pins: int = 8
    read_only: bool = False

    def __post_init__(self) -> None:
        for name in ("memory_budget_bytes", "disk_budget_bytes"):
            value = getattr(self, name)
            _require(
                _is_count(value, 0), f"{name} must be a number of bytes (0 or more), not {value!r}"
            )
        for name in ("max_records", "near_misses", "fit_after", "max_pins"):
            value = getattr(self, name)
            _require(
                _is_count(value, 1), f"{name} must be a whole number of at least 1, not {value!r}"
            )
        _require(
            _is_number(self.online_radius) and 0 < self.online_radius < 2,
            f"online_radius must be a number in (0, 2), not {self.online_radius!r}",
        )
        _require(isinstance(self.tenant, str), f"tenant must be a string, not {self.tenant!r}")
        _require(
            self.chroma is None or str(self.chroma).startswith(("http://", "https://")),
            f"chroma must be the http:// address of a Chroma server, not {self.chroma!r}",
        )

    @property
    def arena_budget_bytes(self) -> int:
        """The part of the memory budget that idle arenas may take."""
        return self.memory_budget_bytes // 4
