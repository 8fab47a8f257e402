"""Metadata of passages: JSON stays as it is, anything else becomes JSON, nothing is refused."""

import enum
import json
import math
import types
from collections import UserDict
from datetime import date
from decimal import Decimal
from typing import Any

import numpy as np
import pytest

from centroidkv.metadata import MOST_DEPTH, plain_metadata
from centroidkv.types import Passage

JSON = {
    "title": "Karten 🏦",
    "n": 3,
    "share": 0.25,
    "tags": ["a", ["b", None]],
    "ok": True,
    "deep": {"z": {"y": 1}, "a": None},
}


class Colour(str, enum.Enum):  # noqa: UP042 - as many write it
    RED = "red"


class Level(enum.IntEnum):
    HIGH = 2


class Mute:
    def __str__(self) -> str:
        raise RuntimeError("says nothing")


class Spoken:
    def __str__(self) -> str:
        return "spoken"


def test_json_stays_as_it_is() -> None:
    assert plain_metadata(JSON) == JSON
    assert plain_metadata({"bad": "\ud800"}) == {"bad": "\ud800"}
    assert plain_metadata({}) == {}


def test_ids_are_those_that_stores_hold() -> None:
    odd = {
        "day": date(2025, 1, 2),
        "pair": (1, 2),
        "price": Decimal("1.50"),
        "num": np.float64(0.5),
        "count": np.int64(7),
    }
    assert [Passage.of("A card.", m).id for m in (JSON, {"bad": "\ud800"}, odd)] == [
        "6c438cb2851797d64262c7943cc7323dcbe46aa864ee145bdf55d2ea9dc1c1b0",
        "39b9f930b558cc88d1bae7d6e5eb339f310049dd34ae91014cfa85bdfbb80be2",
        "b310b7cd37dbb00b916a9b2da28417b3db9f3841307b28a96f44804fe6b55286",
    ]


@pytest.mark.parametrize(
    ("odd", "plain"),
    [
        (date(2025, 1, 2), "2025-01-02"),
        ((1, (2, "b")), [1, [2, "b"]]),
        ({"b", "a", "c"}, ["a", "b", "c"]),
        (frozenset({(2, 1), "a", 3}), ["a", 3, [2, 1]]),
        ({1: 2, "a": 3}, {"1": 2, "a": 3}),
        ({None: 1, True: 2, 1.5: 3, (1, 2): 4}, {"null": 1, "true": 2, "1.5": 3, "(1, 2)": 4}),
        (types.MappingProxyType({"a": 1}), {"a": 1}),
        (UserDict({"a": (1,)}), {"a": [1]}),
        (Colour.RED, "red"),
        (Level.HIGH, 2),
        (Decimal("1.50"), "1.50"),
        (np.float64(0.5), 0.5),
        (np.int64(7), "7"),
        (np.arange(3), "[0 1 2]"),
        (b"raw", "b'raw'"),
        (math.nan, "nan"),
        (-math.inf, "-inf"),
        (Spoken(), "spoken"),
        (Mute(), "Mute"),
        (object(), "object"),
    ],
)
def test_what_is_not_json_becomes_json(odd: Any, plain: Any) -> None:
    made = Passage.of("text", {"odd": odd})
    assert made.metadata == {"odd": plain}
    assert json.loads(json.dumps(made.metadata, allow_nan=False)) == made.metadata
    assert Passage.of("text", made.metadata) == made, "once is enough"


def test_a_number_too_long_for_python_to_write_is_one_in_hexadecimal() -> None:
    assert plain_metadata({"n": 10**5000, 10**5000: 1}) == {"n": hex(10**5000), hex(10**5000): 1}
    assert plain_metadata({"n": 10**4000}) == {"n": 10**4000}


def test_what_is_held_by_itself_or_too_deep_ends() -> None:
    loop: dict[str, Any] = {"a": 1}
    loop["self"] = [loop]
    assert plain_metadata(loop) == {"a": 1, "self": ["{...}"]}
    deep: list[Any] = []
    for _ in range(100_000):
        deep = [deep]
    assert str(plain_metadata({"deep": deep})).count("[") == MOST_DEPTH - 1
    Passage.of("text", {"deep": deep})
    shared = [1]
    assert plain_metadata({"a": shared, "b": shared}) == {"a": [1], "b": [1]}


def test_changing_the_metadata_later_changes_no_passage() -> None:
    own = {"tags": ["a"]}
    made = Passage.of("text", own)
    own["tags"].append("b")
    assert made.metadata == {"tags": ["a"]}
