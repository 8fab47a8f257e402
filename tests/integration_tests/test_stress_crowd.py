"""The quick forms of the stress scripts about many processes, a restarting server and a soak."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

SCRIPTS = Path(__file__).parents[1] / "stress"


@pytest.mark.parametrize("name", ["crowd", "chroma_restart", "soak"])
def test_the_quick_form_breaks_no_promise(name: str) -> None:
    command = [sys.executable, str(SCRIPTS / f"{name}.py"), "--quick"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stdout + done.stderr
    assert json.loads(done.stdout.splitlines()[-1])["violations"] == []
