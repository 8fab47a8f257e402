"""Code run as root, and then as a user without rights: volumes that belong to somebody else."""

import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from tempfile import TemporaryDirectory

import pytest

__all__ = ["NOBODY", "as_nobody", "needs_root", "volume"]

NOBODY = 65534
needs_root = pytest.mark.skipif(
    not hasattr(os, "geteuid") or os.geteuid() != 0, reason="only root can act as others"
)
# Read by root, since the interpreter's own files need not be readable for others.
_BEFORE = """
import encodings.cp437, encodings.idna, logging, os, sys, traceback
from pathlib import Path
import numpy as np
import centroidkv.routing.chroma_index
from centroidkv.errors import *
from centroidkv.maintenance import check_store
from centroidkv.store import Store
logging.basicConfig(stream=sys.stdout, format="%(message)s")
"""
_DROP = "os.setgroups([]); os.setgid({0}); os.setuid({0})\n"


@pytest.fixture
def volume() -> Iterator[Path]:
    """A folder that every user can reach, unlike those below `tmp_path`."""
    with TemporaryDirectory(prefix="volume-") as found:
        Path(found).chmod(0o755)
        folder = Path(found) / "data"
        folder.mkdir()
        yield folder


def as_nobody(code: str, folder: Path, *, imports: str = "") -> str:
    """Run code with `folder` as that user, and return what it printed and warned of."""
    lines = f"{_BEFORE}{imports}\nfolder = Path({str(folder)!r})\n{_DROP.format(NOBODY)}{code}"
    done = subprocess.run(
        [sys.executable, "-c", lines], capture_output=True, text=True, timeout=120, check=False
    )
    assert done.returncode == 0, done.stderr
    return done.stdout
