"""When and where an engine may be used: until it is closed, and where it was opened."""

import os
import subprocess
import sys
import threading
from collections.abc import Callable
from pathlib import Path

import pytest

from centroidkv import Engine
from word_bank import ask, build_and_warm

FORKING = """
import os, sys
from pathlib import Path
from centroidkv import Engine
from centroidkv.errors import ConfigError
from centroidkv.models.loading import wrap_model
from small_parts import HashEmbedder, make_llama, make_tokenizer
from word_bank import ask, build_and_warm

model = wrap_model(make_llama(), make_tokenizer())
engine = Engine.open(sys.argv[1], model=model, embedder=HashEmbedder())
build_and_warm(engine)
child = os.fork()
if child == 0:
    refused = []
    for use in (lambda: ask(engine, "q"), engine.flush, lambda: engine.generate("q"),
                lambda: engine.for_tenant("acme"), engine.stats):
        try:
            use()
        except ConfigError as error:
            refused.append(str(error))
    engine.close()
    Path(sys.argv[2]).write_text("\\n".join(refused))
    os._exit(0)
assert os.waitpid(child, 0)[1] == 0
assert ask(engine, "please block my lost card").usage.outcome == "hit"
engine.close()
"""


def test_a_forked_process_is_told_to_open_its_own(tmp_path: Path) -> None:
    told = tmp_path / "told"
    paths = os.pathsep.join(sys.path)
    subprocess.run(
        [sys.executable, "-c", FORKING, str(tmp_path / "store"), str(told)],
        env={**os.environ, "PYTHONPATH": paths},
        check=True,
        timeout=120,
    )
    lines = told.read_text().splitlines()
    assert len(lines) == 5
    assert all("open it here, in each worker" in line for line in lines)


def test_a_process_may_change_its_folder(
    open_engine: Callable[..., Engine], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path)
    with open_engine(Path("kv-store")) as engine:
        build_and_warm(engine)
        monkeypatch.chdir(tmp_path / "elsewhere")
        for block in engine.store.blocks.memory.used_s():
            engine.store.blocks.memory.delete(block)
        assert ask(engine, "please block my lost card").usage.outcome == "hit"
        assert engine.check().problems == []
    assert list((tmp_path / "elsewhere").iterdir()) == []


def test_what_takes_time_is_done_by_whoever_waits_for_the_answer(
    open_engine: Callable[..., Engine], monkeypatch: pytest.MonkeyPatch
) -> None:
    engine = open_engine(ttl_s=3600)
    looked: list[int] = []
    look = engine._expiry.look

    def noted() -> bool:
        looked.append(threading.get_ident())
        return look()

    monkeypatch.setattr(engine._expiry, "look", noted)
    pieces = engine.stream("how do I block a lost card", max_tokens=2)
    assert looked == []
    waiting = threading.Thread(target=list, args=(pieces,))
    waiting.start()
    waiting.join()
    assert looked == [waiting.ident]
