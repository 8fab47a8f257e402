"""Bad files, full disks and read-only folders cost time, never an answer."""

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from centroidkv import Engine
from word_bank import ask, build_and_warm

QUESTION = "please block my lost card"


def blocks_of(store: Path) -> list[Path]:
    return sorted(store.glob("blocks/*/*.safetensors"))


@pytest.mark.parametrize("harm", ["truncate", "flip", "empty", "swap", "delete", "foreign"])
def test_a_damaged_block_is_computed_again(
    open_engine: Callable[..., Engine], tmp_path: Path, harm: str
) -> None:
    with open_engine() as engine:
        build_and_warm(engine)
        expected = ask(engine, QUESTION, reuse="off").token_ids
    store = tmp_path / "store"
    files = blocks_of(store)
    for path, other in zip(files, [*files[1:], files[0]], strict=True):
        raw = path.read_bytes()
        if harm == "truncate":
            os.truncate(path, len(raw) // 2)
        elif harm == "flip":
            path.write_bytes(raw[:-9] + bytes([raw[-9] ^ 1]) + raw[-8:])
        elif harm == "empty":
            path.write_bytes(b"")
        elif harm == "swap" and path < other:
            path.write_bytes(other.read_bytes())
        elif harm == "delete":
            path.unlink()
        elif harm == "foreign":
            path.write_bytes(b"\x08\x00\x00\x00\x00\x00\x00\x00{}      hello")
    engine = open_engine()
    report = engine.check()
    assert not report.is_clean
    first = ask(engine, QUESTION)
    assert first.token_ids == expected
    assert (first.usage.outcome, first.usage.reason) == ("miss", "block_damaged")
    again = ask(engine, QUESTION)
    assert again.token_ids == expected and again.usage.outcome == "hit"
    engine.check(repair=True)
    assert engine.check().is_clean


def test_repair_indexes_files_that_the_manifest_lost(
    open_engine: Callable[..., Engine], tmp_path: Path
) -> None:
    with open_engine() as engine:
        build_and_warm(engine)
        blocks = engine.stats().num_blocks
    (tmp_path / "store/manifest.sqlite").write_bytes(b"this is no database" * 100)
    for suffix in ("-wal", "-shm"):
        (tmp_path / f"store/manifest.sqlite{suffix}").unlink(missing_ok=True)
    engine = open_engine()
    assert engine.stats().num_blocks == blocks
    assert ask(engine, QUESTION).usage.outcome == "hit"
    assert engine.check().is_clean
    assert list((tmp_path / "store/quarantine").glob("manifest*"))


def test_a_damaged_plan_leaves_the_answers(
    open_engine: Callable[..., Engine], tmp_path: Path, caplog
) -> None:
    with open_engine() as engine:
        build_and_warm(engine)
    plan = next((tmp_path / "store/plans").glob("*.plan"))
    plan.write_bytes(plan.read_bytes()[:-5])
    engine = open_engine()
    assert "plan" in caplog.text
    assert ask(engine, QUESTION).usage.completion_tokens == 12
    assert not engine.check(repair=True).is_clean
    assert engine.check().is_clean


def test_a_read_only_store_answers_and_stays_as_it_is(
    open_engine: Callable[..., Engine], tmp_path: Path
) -> None:
    with open_engine() as engine:
        build_and_warm(engine)
    before = {p: p.read_bytes() for p in (tmp_path / "store").rglob("*") if p.is_file()}
    engine = open_engine(read_only=True)
    done = ask(engine, QUESTION)
    assert done.usage.outcome == "hit"
    assert done.token_ids == ask(engine, QUESTION, reuse="off").token_ids
    assert ask(engine, "a question of another kind").usage.stored_tokens == 0
    engine.close()
    after = {p: p.read_bytes() for p in (tmp_path / "store").rglob("*") if p.is_file()}
    assert after == before


_FULL = """
import resource, sys
sys.path[:0] = sys.argv[2:]
from centroidkv import Engine
from small_parts import HashEmbedder, make_llama, make_tokenizer
from centroidkv.models.loading import wrap_model
from word_bank import ask

engine = Engine.open(sys.argv[1], model=wrap_model(make_llama(), make_tokenizer()),
                     embedder=HashEmbedder())
# No file of this process may grow past 20 kB: what a full disk does to a write.
resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, 20_000))
done = ask(engine, "please block my lost card")
engine.flush()
cold = ask(engine, "please block my lost card", reuse="off")
print(done.token_ids == cold.token_ids, engine.store.writer.num_failed > 0)
"""


def test_a_full_disk_costs_the_store_not_the_answer(tmp_path: Path) -> None:
    tests = Path(__file__).parents[1]
    done = subprocess.run(
        [sys.executable, "-c", _FULL, str(tmp_path / "s"), str(tests)],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.stdout.split() == ["True", "True"], done.stderr[-2000:]
    assert "KV could not be stored" in done.stderr


def test_budgets_are_obeyed(open_engine: Callable[..., Engine], tmp_path: Path) -> None:
    budget = 2_000_000
    engine = open_engine(disk_budget_bytes=budget, memory_budget_bytes=300_000)
    for number in range(60):
        prompt = f"{number} is the first word of a prompt that no other prompt begins with. " * 10
        cold = engine.generate(prompt, max_tokens=3, reuse="off")
        assert engine.generate(prompt, max_tokens=3).token_ids == cold.token_ids
        engine.flush()
        assert engine.store.blocks.memory.num_bytes <= 300_000
        assert sum(p.stat().st_size for p in blocks_of(tmp_path / "store")) <= budget
    stats = engine.stats()
    assert stats.disk_bytes <= budget
    assert stats.counters["evicted_blocks"] > 0
    assert engine.check().is_clean
    assert engine.generate(prompt, max_tokens=3).usage.outcome == "hit"


def test_nothing_needs_a_network(tmp_path: Path) -> None:
    """The whole path runs where every connection attempt fails."""
    script = """
import socket, sys

def refuse(*_):
    raise AssertionError("a connection was attempted")

socket.socket.connect = refuse
socket.getaddrinfo = refuse
from centroidkv import Engine
with Engine.open(sys.argv[1]) as engine:
    report = engine.build(questions=["lost card", "card lost", "wire fee"],
                          retriever=lambda q: ["cards are blocked", "wires cost money"],
                          num_clusters=1)
    print(report.num_clusters, engine.generate("hello", max_tokens=2).usage.outcome)
"""
    done = subprocess.run(
        [sys.executable, "-c", script, str(tmp_path / "s")],
        capture_output=True,
        text=True,
        check=False,
        env={**os.environ, "HF_HUB_OFFLINE": "0"},
    )
    assert done.stdout.split() == ["1", "miss"], done.stderr[-2000:]
