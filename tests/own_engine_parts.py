"""Engines that models of frameworks open for themselves, counted."""

from collections.abc import Iterator
from typing import Any

import pytest

from centroidkv import Engine
from small_parts import HashEmbedder

__all__ = ["opened"]


@pytest.fixture
def opened(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[Engine]]:
    """Count engines; those that are opened embed by hashes, and are closed at the end."""
    engines: list[Engine] = []
    opening = Engine.open

    def noted(path: Any, **options: Any) -> Engine:
        engines.append(opening(path, **{**options, "embedder": HashEmbedder()}))
        return engines[-1]

    monkeypatch.setattr(Engine, "open", noted)
    yield engines
    for engine in engines:
        engine.close()
