"""Settings made from keyword arguments, and how their values are checked."""

from collections.abc import Mapping
from dataclasses import fields
from datetime import date
from typing import Any, Self

from centroidkv.errors import ConfigError

__all__ = ["Settings", "is_count", "is_date", "is_number", "require"]


class Settings:
    """Builds a frozen dataclass from keyword arguments, naming what is wrong."""

    __slots__ = ()

    @classmethod
    def of(cls, settings: Mapping[str, Any]) -> Self:
        known = [f.name for f in fields(cls)]  # type: ignore[arg-type]
        unknown = sorted(set(settings) - set(known))
        if unknown:
            raise ConfigError(f"unknown setting {', '.join(unknown)}; known: {', '.join(known)}")
        return cls(**settings)


def require(condition: object, message: str) -> None:
    """Raise `ConfigError` with the message unless the condition holds."""
    if not condition:
        raise ConfigError(message)


def is_number(value: object) -> bool:
    """Tell a number from other things, a truth value among them."""
    return isinstance(value, int | float) and not isinstance(value, bool)


def is_count(value: object, least: int) -> bool:
    """Tell whether a value is a whole number of at least `least`."""
    return isinstance(value, int) and not isinstance(value, bool) and value >= least


def is_date(value: object) -> bool:
    """Tell whether a value is the text of an ISO date."""
    try:
        date.fromisoformat(str(value))
    except ValueError:
        return False
    return isinstance(value, str)
