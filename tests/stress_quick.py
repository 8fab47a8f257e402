"""The quick form of a stress script, run as its user would."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

SCRIPTS = Path(__file__).parent / "stress"

__all__ = ["quick"]


def quick(name: str, *options: str) -> dict[str, Any]:
    """Return what a script found; a broken promise is a failed assertion."""
    done = subprocess.run(
        [sys.executable, SCRIPTS / f"{name}.py", "--quick", *options],
        capture_output=True,
        text=True,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        timeout=400,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    found: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    assert found["violations"] == []
    return found
