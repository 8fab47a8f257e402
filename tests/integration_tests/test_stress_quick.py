"""Quick forms of the stress scripts that kill processes and damage files."""

import pytest

from stress_quick import quick


@pytest.mark.parametrize("name", ["kills", "corruptions"])
def test_a_few_rounds_find_nothing_wrong(name: str) -> None:
    assert quick(name, "--seed", "7")["rounds"] > 0
