"""Metadata of passages as plain JSON, which is the same before and after it lay in a file.

What JSON holds stays as it is, since ids of passages depend on it. Anything else becomes what
comes nearest; nothing is refused, as metadata is the user's and serves nobody else.
"""

import json
import math
from collections.abc import Mapping
from typing import Any

__all__ = ["MOST_DEPTH", "plain_metadata"]

MOST_DEPTH = 64
# Python writes and reads whole numbers of at most 4,300 digits.
_MOST_BITS = 14_000


def plain_metadata(metadata: Mapping[Any, Any]) -> dict[str, Any]:
    """Return a copy that is JSON: keys are texts, sets sorted lists, other objects texts.

    Numbers that JSON lacks (nan, infinity) are texts too, and so is what holds itself or is
    nested deeper than `MOST_DEPTH`.
    """
    return _of_mapping(metadata, ())


def _of_mapping(values: Mapping[Any, Any], around: tuple[int, ...]) -> dict[str, Any]:
    inside = (*around, id(values))
    return {_key(key): _plain(value, inside) for key, value in values.items()}


def _key(key: Any) -> str:
    if key is None or isinstance(key, bool | int | float):
        key = _scalar(key)
        return key if isinstance(key, str) else json.dumps(key)
    return str.__str__(key) if isinstance(key, str) else _text(key)


def _plain(value: Any, around: tuple[int, ...]) -> Any:
    """Return a value as JSON; `around` are the ids of what holds it."""
    if value is None or isinstance(value, str | bool | int | float):
        return _scalar(value)
    if isinstance(value, Mapping | list | tuple | set | frozenset):
        if id(value) in around:
            return "{...}" if isinstance(value, Mapping) else "[...]"
        if len(around) >= MOST_DEPTH:
            return type(value).__name__
        if isinstance(value, Mapping):
            return _of_mapping(value, around)
        inside = (*around, id(value))
        made = [_plain(one, inside) for one in value]
        return made if isinstance(value, list | tuple) else sorted(made, key=_canonical)
    return _text(value)


def _scalar(value: Any) -> str | bool | int | float | None:
    """Return a value of JSON's own types, of a subclass (an enum, numpy's float64) its value."""
    if value is None or isinstance(value, bool):
        return value
    if isinstance(value, str):
        return str.__str__(value)
    if isinstance(value, int):
        return int(value) if value.bit_length() <= _MOST_BITS else hex(value)
    return float(value) if math.isfinite(value) else str(float(value))


def _canonical(value: Any) -> str:
    return json.dumps(value, sort_keys=True)


def _text(value: Any) -> str:
    kind: Any = type(value)
    if kind.__str__ is object.__str__ and kind.__repr__ is object.__repr__:
        return str(kind.__name__)  # Python would say where it lies in memory
    try:
        return str(value)
    except Exception:  # noqa: BLE001 - the user's own method
        return str(kind.__name__)
