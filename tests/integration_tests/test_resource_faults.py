"""What a machine runs out of: room on the disk, file handles. Answers stay what they are."""

import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

TESTS = Path(__file__).parents[1]
_BEGIN = """
import os, resource, subprocess, sys
sys.path[:0] = sys.argv[2:]
from centroidkv import Engine
from small_parts import HashEmbedder, make_llama, make_tokenizer
from centroidkv.models.loading import wrap_model

def opened(**settings):
    model = wrap_model(make_llama(), make_tokenizer())
    return Engine.open(sys.argv[1] + "/store", model=model, embedder=HashEmbedder(), **settings)

def wrong(engine, numbers):
    found = 0
    for number in numbers:
        prompt = f"{number} is the first word of a prompt that no other prompt begins with. " * 8
        done = engine.generate(prompt, max_tokens=4)
        found += done.token_ids != engine.generate(prompt, max_tokens=4, reuse="off").token_ids
    engine.flush()
    return found
"""
_FULL = """
with opened() as engine:
    print(wrong(engine, range(12)), engine.store.writer.num_failed > 0)
with opened() as engine:
    print(wrong(engine, range(12)))
subprocess.run(["mount", "-o", "remount,size=50m", sys.argv[1]], check=True)
with opened() as engine:
    print(wrong(engine, range(12)), wrong(engine, range(12)))
    print(engine.generate("1 is the first word of a prompt that no other prompt begins with. " * 8,
                          max_tokens=4).usage.outcome)
    engine.check(repair=True)
    print(engine.check().problems)
"""
_NO_HANDLES = """
with opened(memory_budget_bytes=1) as engine:
    print(wrong(engine, range(4)))
    most = max(int(n) for n in os.listdir("/proc/self/fd"))
    resource.setrlimit(resource.RLIMIT_NOFILE, (most, 1024))
    try:
        open("/dev/null")
    except OSError as error:
        print(error.strerror)
    print(wrong(engine, range(8)))
    resource.setrlimit(resource.RLIMIT_NOFILE, (1024, 1024))
    print(wrong(engine, range(8)))
with opened() as engine:
    print(engine.check(repair=True).num_blocks > 0, engine.check().problems)
"""


def run(body: str, folder: Path) -> list[str]:
    """Run a script in a process of its own; return the lines it prints."""
    command = [sys.executable, "-c", _BEGIN + body, str(folder), str(TESTS)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=200)
    assert done.returncode == 0, done.stderr[-3000:]
    return done.stdout.splitlines()


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """Mount a file system of 700 kB."""
    if os.name != "posix" or os.geteuid() != 0:
        pytest.skip("only root may mount a small disk")
    options = ["-t", "tmpfs", "-o", "size=700k", "tmpfs"]
    if subprocess.run(["mount", *options, str(tmp_path)], capture_output=True).returncode:
        pytest.skip("nothing can be mounted here")
    yield tmp_path
    subprocess.run(["umount", "-l", str(tmp_path)], check=True)


def test_a_disk_that_is_full_costs_the_store_until_there_is_room(small_disk: Path) -> None:
    assert run(_FULL, small_disk) == ["0 True", "0", "0 0", "hit", "[]"]


def test_a_process_without_handles_goes_on(tmp_path: Path) -> None:
    said = run(_NO_HANDLES, tmp_path)
    assert said == ["0", "Too many open files", "0", "0", "True []"]
