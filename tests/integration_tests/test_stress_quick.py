"""Quick forms of the stress scripts that kill processes, damage files and fuzz their readers."""

from importlib.util import find_spec

import pytest

from stress_quick import quick


@pytest.mark.parametrize("name", ["kills", "corruptions"])
def test_a_few_rounds_find_nothing_wrong(name: str) -> None:
    assert quick(name, "--seed", "7")["rounds"] > 0


@pytest.mark.skipif(find_spec("atheris") is None, reason="atheris is not installed")
def test_a_few_seconds_of_fuzzing_find_nothing() -> None:
    targets = quick("fuzz")["targets"]
    assert len(targets) == 4
    assert all(run["runs"] > 0 for run in targets.values())
