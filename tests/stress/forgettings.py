"""Kill a process at every step of forgetting: the next opening goes on, and nothing is left.

    python tests/stress/forgettings.py [--quick]

Prints one JSON line of counts; exits with 1 on any violation. Children are forked before any
thread is started; each opens a copy of one store, and is killed or has to find it clean.
"""

import argparse
import os
import shutil
import signal
import sys
import tempfile
from functools import partial
from pathlib import Path

os.environ["OMP_NUM_THREADS"] = "1"
os.environ["TOKENIZERS_PARALLELISM"] = "false"
sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import torch
from branches import in_branch, run
from told import told

from centroidkv import Engine
from centroidkv.models.loading import wrap_model
from centroidkv.privacy.wanted import Wanted
from centroidkv.types import Message
from small_parts import HashEmbedder, make_llama, make_tokenizer
from word_bank import ask, build_and_warm

SECRET = "did Zebulon Quibble of 12 Nowhere Lane win at the races on Sunday"
OTHER = "is my card blocked when it is lost in the rain"
STEPS = ("before", "after", "rewriting")
NUM_PLACES = 12
SECONDS = 60


class Dying:
    """A place at which the process dies before or after it was emptied, or when it is rewritten."""

    def __init__(self, place: object, when: str) -> None:
        self._place = place
        self._when = when
        self.name = place.name

    def find(self, wanted: Wanted) -> list:
        return self._place.find(wanted)

    def forget(self, wanted: Wanted) -> int:
        self._die("before")
        done = self._place.forget(wanted)
        self._die("after")
        return done

    def scrub(self) -> str | None:
        self._die("rewriting")
        return self._place.scrub()

    def _die(self, when: str) -> None:
        if when == self._when:
            os.kill(os.getpid(), signal.SIGKILL)


class Trial:
    """One store, and children that work on copies of it."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.model = wrap_model(make_llama(), make_tokenizer())

    def open(self, name: str) -> Engine:
        return Engine.open(
            self.folder / name / "store",
            model=self.model,
            embedder=HashEmbedder(),
            near_misses=1,
            online_radius=0.01,
        )

    def fill(self) -> None:
        with self.open("filled") as engine:
            build_and_warm(engine)
            ask(engine, OTHER)
            ask(engine, SECRET)
            turn = Message("user", f"{'What I want to know. ' * 4}{SECRET}")
            engine.generate([turn], max_tokens=20)

    def forget(self, name: str, number: int, when: str) -> None:
        """Forget, and die at one step of one place."""
        engine = self.open(name)
        places = list(engine._privacy._places)
        assert len(places) == NUM_PLACES
        places[number] = Dying(places[number], when)
        engine._privacy._places = places
        engine.forget(question=SECRET)

    def look(self, name: str) -> None:
        """Open again; what was begun must be done."""
        with self.open(name) as engine:
            found = engine.export(question=SECRET)
            assert found.entries == found.problems == (), found
            assert ask(engine, OTHER).usage.outcome == "hit"
            assert engine.check().problems == []
            ids = engine.model.encode("Zebulon", chat_template=False).token_ids
        tokens = b"".join(i.to_bytes(4, "big") for i in ids if i < 256)
        for path in (self.folder / name).rglob("*"):
            if path.is_file():
                raw = path.read_bytes()
                assert b"Zebulon" not in raw, path
                assert tokens not in raw, path
        assert list((self.folder / name / "store" / "forgetting").glob("*.json")) == []


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true", help="one step a place instead of three")
    quick = parser.parse_args().quick
    torch.set_num_threads(1)
    kills, violations = 0, []
    with tempfile.TemporaryDirectory() as folder:
        trial = Trial(Path(folder))
        in_branch(trial.fill)
        for number in range(NUM_PLACES):
            for when in STEPS[number % 3 :][:1] if quick else STEPS:
                name = f"{number}-{when}"
                shutil.copytree(trial.folder / "filled", trial.folder / name)
                died = run(partial(trial.forget, name, number, when), timeout_s=SECONDS)
                kills += died.signal == signal.SIGKILL
                seen = run(partial(trial.look, name), timeout_s=SECONDS)
                if died.signal != signal.SIGKILL or not seen.is_well:
                    violations.append(f"{name}: {died}, then {seen}")
                shutil.rmtree(trial.folder / name)
    return told({"kills": kills}, violations)


if __name__ == "__main__":
    sys.exit(main())
