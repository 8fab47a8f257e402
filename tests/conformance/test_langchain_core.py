"""Langchain-core's own cache tests, from its source distribution, against the answer cache.

LANGCHAIN_CORE_SOURCE names the folder of the unpacked distribution. Nothing of it is copied,
changed or left out; its tests of `InMemoryCacheBad`, which must never be asked, stay as they are.
Only its conftest is not loaded, which forbids blocking calls inside a running event loop: two
asynchronous tests call a model synchronously there, and a cache on disk cannot but read.
"""

import os
import subprocess
import sys
import xml.etree.ElementTree as ET
from importlib.metadata import version
from pathlib import Path

HERE = Path(__file__).parent
FILES = [
    "tests/unit_tests/caches/test_in_memory_cache.py",
    "tests/unit_tests/language_models/llms/test_cache.py",
    "tests/unit_tests/language_models/chat_models/test_cache.py",
]
# What langchain-core itself expects to fail: streams do not reach any cache.
EXPECTED_TO_FAIL = {"test_global_cache_stream"}
# These make no cache: they look at the names of models, or at a cache that must not be asked.
WITHOUT_CACHE = {
    "test_no_cache_generate_sync",
    "test_no_cache_generate_async",
    "test_cleanup_serialized",
}


def test_its_cache_tests_pass(tmp_path: Path, capsys) -> None:
    source = Path(os.environ["LANGCHAIN_CORE_SOURCE"]).resolve()
    assert f"\nVersion: {version('langchain-core')}\n" in (source / "PKG-INFO").read_text("utf-8")
    report = tmp_path / "report.xml"
    options = ["-c", "pyproject.toml", "--noconftest", "-p", "engine_cache", "-W", "error", "-q"]
    options += ["-o", "junit_family=legacy", f"--junitxml={report}"]
    paths = [str(HERE), str(HERE.parent), os.environ.get("PYTHONPATH", "")]
    done = subprocess.run(
        [sys.executable, "-m", "pytest", *options, *FILES],
        cwd=source,
        env={**os.environ, "PYTHONPATH": os.pathsep.join(p for p in paths if p)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout[-5000:] + done.stderr[-2000:]
    cases = list(ET.parse(report).iter("testcase"))
    assert {c.get("classname", "").replace(".", "/") + ".py" for c in cases} == set(FILES)
    skipped = {c.get("name") for c in cases if c.find("skipped") is not None}
    assert skipped == EXPECTED_TO_FAIL
    engines = {c.get("name"): int(c.find(".//property").get("value")) for c in cases}
    assert {name for name, number in engines.items() if number == 0} == WITHOUT_CACHE
    with capsys.disabled():
        print(f"\n{done.stdout.splitlines()[-1]}; {sum(engines.values())} engines")  # noqa: T201
