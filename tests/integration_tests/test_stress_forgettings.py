"""The quick form of `tests/stress/forgettings.py`: a kill at each place that is forgotten from."""

import json
import subprocess
import sys
from pathlib import Path

SCRIPT = Path(__file__).parents[1] / "stress" / "forgettings.py"


def test_no_kill_leaves_what_was_to_be_forgotten() -> None:
    done = subprocess.run(
        [sys.executable, SCRIPT, "--quick"],
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout.splitlines()[-1]) == {"kills": 11, "violations": 0}
