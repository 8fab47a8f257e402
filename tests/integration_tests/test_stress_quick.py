"""The quick forms of the stress scripts: a few rounds of each."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

STRESS = Path(__file__).parents[1] / "stress"


@pytest.mark.parametrize("name", ["kills", "corruptions"])
def test_a_few_rounds_find_nothing_wrong(name: str) -> None:
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    command = [sys.executable, STRESS / f"{name}.py", "--quick", "--seed", "7"]
    done = subprocess.run(command, capture_output=True, text=True, env=environment, timeout=400)
    assert done.returncode == 0, done.stdout + done.stderr
    told = json.loads(done.stdout.splitlines()[-1])
    assert told["rounds"] > 0 and told["violations"] == 0
