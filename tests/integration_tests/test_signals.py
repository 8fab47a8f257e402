"""A real process that is told to end in the middle of an answer."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from centroidkv import close_on_signals
from centroidkv.errors import ConfigError, EngineClosing
from centroidkv.maintenance import check_store
from centroidkv.serving.closing import Terminated, interrupted_by_sigterm
from centroidkv.store import Store

TESTS = Path(__file__).parents[1]
SERVE = """
import sys, threading, time
from centroidkv import Engine, close_on_signals
from centroidkv.errors import EngineClosing
from centroidkv.models.loading import wrap_model
from small_parts import HashEmbedder, make_llama, make_tokenizer

folder, grace_s, pause_s = sys.argv[1], float(sys.argv[2]), float(sys.argv[3])
model = wrap_model(make_llama(positions=8192), make_tokenizer())
engine = Engine.open(folder, model=model, embedder=HashEmbedder())
close_on_signals(engine, grace_s=grace_s)

def answer():
    prompt = "Cards are blocked by phone, day and night. " * 20
    try:
        for number, chunk in enumerate(engine.stream(prompt, max_tokens=100)):
            time.sleep(pause_s)
            if number == 3:
                print("under way", flush=True)
        print("complete", flush=True)
    except EngineClosing:
        print("cancelled", flush=True)

thread = threading.Thread(target=answer)
thread.start()
while True:
    time.sleep(0.05)
"""


def ended(folder: Path, *, grace_s: float, pause_s: float) -> tuple[int, str, float]:
    """Start a process, end it while it answers; return its exit code, words and seconds."""
    command = [sys.executable, "-c", SERVE, str(folder), str(grace_s), str(pause_s)]
    paths = [str(TESTS), os.environ.get("PYTHONPATH", "")]
    found = {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, paths))}
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=found)
    assert process.stdout is not None
    assert process.stdout.readline() == "under way\n"
    began = time.monotonic()
    process.send_signal(signal.SIGTERM)
    words = process.communicate(timeout=60)[0]
    return process.returncode, words, time.monotonic() - began


@pytest.mark.parametrize(
    ("grace_s", "pause_s", "said"), [(30, 0.005, "complete\n"), (0.1, 0.08, "cancelled\n")]
)
def test_an_answer_ends_and_everything_is_written(
    tmp_path: Path, grace_s: float, pause_s: float, said: str
) -> None:
    code, words, seconds = ended(tmp_path / "store", grace_s=grace_s, pause_s=pause_s)
    assert (code, words) == (-signal.SIGTERM, said)
    assert seconds < 10
    store = Store.open(tmp_path / "store", create=False)
    try:
        assert store.blocks.disk.manifest.counters()["requests"] == 1
        assert store.blocks.disk.manifest.num_blocks() >= 13
        assert check_store(store).is_clean
    finally:
        store.close()


def test_a_closing_engine_refuses_requests(engine) -> None:
    engine.store.requests.shut()
    with pytest.raises(EngineClosing, match="another process"):
        engine.generate("Are you there?")
    with pytest.raises(ConfigError, match="grace_s"):
        close_on_signals(engine, grace_s=-1)


def test_a_command_is_interrupted(tmp_path: Path, capsys, monkeypatch) -> None:
    from centroidkv import cli

    before = signal.getsignal(signal.SIGTERM)
    with pytest.raises(Terminated), interrupted_by_sigterm():
        os.kill(os.getpid(), signal.SIGTERM)
        time.sleep(5)
    Store.open(tmp_path / "store").close()
    monkeypatch.setattr(cli, "store_stats", lambda store: os.kill(os.getpid(), signal.SIGTERM))
    assert cli.main(["stats", "--store", str(tmp_path / "store")]) == 143
    assert "interrupted" in capsys.readouterr().err
    assert signal.getsignal(signal.SIGTERM) is before
