"""Whole engines, and the adapters over them, with tiny random models."""

import shutil
from pathlib import Path

import pytest

from centroidkv import Engine
from small_parts import HashEmbedder
from word_bank import Built, build_twice


@pytest.fixture(autouse=True, scope="session")
def _small(one_thread: None) -> None:
    """Run tiny models on one thread."""


@pytest.fixture(scope="session")
def built_once(tmp_path_factory, model) -> tuple[Path, Built]:
    path = tmp_path_factory.mktemp("built") / "store"
    with Engine.open(path, model=model, embedder=HashEmbedder()) as engine:
        return path, build_twice(engine)


@pytest.fixture
def built(built_once: tuple[Path, Built], tmp_path: Path) -> Built:
    """Put a store with two plan versions where `open_engine` opens one."""
    path, plans = built_once
    shutil.copytree(path, tmp_path / "store")
    return plans
