"""Fixtures over the small real parts."""

import contextlib
import os
from collections.abc import Callable, Iterator
from pathlib import Path

os.environ["HF_HUB_OFFLINE"] = "1"
os.environ["TOKENIZERS_PARALLELISM"] = "false"
if "PYTEST_XDIST_WORKER" in os.environ:
    # Threads of several processes that wait for each other on one core slow all of them down.
    os.environ["OMP_NUM_THREADS"] = "1"

import pytest
import torch
from transformers import PreTrainedTokenizerFast

from centroidkv import Engine
from centroidkv.models.loading import wrap_model
from centroidkv.models.transformers_model import TransformersModel
from small_parts import HashEmbedder, make_block, make_llama, make_tokenizer

# A plugin of the standard suites imports this in the middle of a test, where pytest parses it. In
# Python 3.11 two threads that parse at once fail: "AST constructor recursion depth mismatch".
with contextlib.suppress(ImportError):
    import vcr  # noqa: F401

__all__ = ["HashEmbedder", "make_block", "make_llama", "make_tokenizer"]


@pytest.fixture(scope="session")
def one_thread() -> Iterator[None]:
    """Compute on one thread: faster for tiny models, and leaves the machine to others."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="session")
def tokenizer() -> PreTrainedTokenizerFast:
    return make_tokenizer()


@pytest.fixture(scope="session")
def model(tokenizer: PreTrainedTokenizerFast) -> TransformersModel:
    return wrap_model(make_llama(), tokenizer)


@pytest.fixture
def embedder() -> HashEmbedder:
    return HashEmbedder()


@pytest.fixture
def open_engine(
    tmp_path: Path, model: TransformersModel, embedder: HashEmbedder
) -> Iterator[Callable[..., Engine]]:
    """Open engines on one store folder, one after the other or at once; all are closed."""
    opened: list[Engine] = []

    def opening(path: Path | None = None, **options: object) -> Engine:
        options = {"model": model, "embedder": embedder, **options}
        engine = Engine.open(path or tmp_path / "store", **options)
        opened.append(engine)
        return engine

    yield opening
    for engine in opened:
        engine.close()


@pytest.fixture
def engine(open_engine: Callable[..., Engine]) -> Engine:
    return open_engine()
