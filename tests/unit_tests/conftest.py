"""Unit tests take parts alone, and open no engine."""

import pytest


@pytest.fixture(autouse=True, scope="session")
def _small(one_thread: None) -> None:
    """Run tiny models on one thread."""
