"""The error tree is as its docstring draws it, and messages say what to do."""

import pickle
import re
from pathlib import Path

import pytest

from centroidkv import errors
from centroidkv.errors import (
    CacheCorrupt,
    CacheError,
    CacheFull,
    CacheMismatch,
    CentroidKVError,
    ConfigError,
    ContextTooLong,
    MissingExtra,
    ModelError,
    UnsupportedChain,
)


def drawn_tree() -> dict[str, str]:
    """Read child -> parent from the drawing in the module's docstring."""
    parents: dict[str, str] = {}
    path: list[str] = []
    for line in (errors.__doc__ or "").splitlines():
        found = re.match(r"^    ((?:│   |    )*(?:├── |└── )?)([A-Z]\w+)", line)
        if found:
            depth = len(found[1]) // 4
            path[depth:] = [found[2]]
            if depth:
                parents[found[2]] = path[depth - 1]
    return parents


def test_the_tree_is_as_drawn() -> None:
    parents = drawn_tree()
    assert {"CentroidKVError", *parents} == set(errors.__all__)
    for child, parent in parents.items():
        assert getattr(errors, parent) in getattr(errors, child).__bases__, child


def test_all_is_sorted_and_complete() -> None:
    assert errors.__all__ == sorted(errors.__all__)
    defined = {n for n, v in vars(errors).items() if isinstance(v, type) and n != "Path"}
    assert defined == set(errors.__all__)


def test_errors_are_also_what_python_calls_them() -> None:
    assert issubclass(ConfigError, ValueError)
    assert issubclass(MissingExtra, ImportError)
    assert not issubclass(CacheError, (ValueError, OSError))
    assert not issubclass(ModelError, ValueError)


def examples() -> list[CentroidKVError]:
    return [
        CacheMismatch("a.plan", expected="1", found="2"),
        CacheCorrupt(Path("/store/a"), "cut off"),
        CacheFull(needed_bytes=12345, budget_bytes=1000),
        ContextTooLong(prompt_tokens=5000, context_tokens=4096),
        MissingExtra("gguf", command="pip install gguf"),
        UnsupportedChain("a graph", instead="accelerate its chains"),
    ]


def test_a_mismatch_tells_both_sides() -> None:
    error = examples()[0]
    assert str(error) == "a.plan: expected 1, found 2"
    assert isinstance(error, CacheMismatch) and (error.expected, error.found) == ("1", "2")


def test_a_corrupt_file_is_named_with_what_happens_to_it() -> None:
    error = CacheCorrupt(Path("/store/a"), "cut off")
    assert error.path == Path("/store/a")
    assert str(error) == "/store/a: cut off; it is ignored and will be computed again"


def test_a_full_cache_names_the_setting_to_raise() -> None:
    error = CacheFull(needed_bytes=12345, budget_bytes=1000)
    assert (error.needed_bytes, error.budget_bytes) == (12345, 1000)
    assert "12,345" in str(error) and "disk_budget_bytes" in str(error)


def test_a_prompt_too_long_says_how_long_and_what_to_do() -> None:
    error = ContextTooLong(prompt_tokens=5000, context_tokens=4096)
    assert (error.prompt_tokens, error.context_tokens) == (5000, 4096)
    assert "5,000" in str(error) and "4,096" in str(error) and "max_pin_tokens" in str(error)


def test_a_missing_extra_has_the_line_that_installs_it() -> None:
    assert str(MissingExtra("gguf", command="pip install gguf")) == (
        "gguf is not installed; run: pip install gguf"
    )


def test_an_unsupported_chain_names_the_part_and_what_to_do() -> None:
    error = UnsupportedChain("a graph", instead="accelerate its chains")
    assert (error.part, error.instead) == ("a graph", "accelerate its chains")
    assert str(error) == "a graph; accelerate its chains"


@pytest.mark.parametrize("error", examples(), ids=lambda e: type(e).__name__)
def test_errors_survive_the_way_from_another_process(error: CentroidKVError) -> None:
    """A worker pool or a task queue hands errors on by pickling them."""
    again = pickle.loads(pickle.dumps(error))
    assert type(again) is type(error) and str(again) == str(error)
