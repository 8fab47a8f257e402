"""Unit tests run tiny models: one thread each, which is faster and leaves the machine to others."""

import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from centroidkv import Engine
from small_parts import HashEmbedder
from word_bank import Built, build_twice


@pytest.fixture(autouse=True, scope="session")
def _one_thread() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


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
