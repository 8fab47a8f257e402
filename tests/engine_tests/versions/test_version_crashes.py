"""A version change that is killed between any two writes leaves a store that opens and serves.

Every write of the change raises in turn before it is done; what is on disk then is what a killed
process would leave. It is copied, opened, asked and checked, and the change is made once more.
"""

import shutil
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from centroidkv import Engine, Passage
from centroidkv import vault as vault_module
from centroidkv.kv.manifest import Manifest
from centroidkv.routing import pointer as pointer_module
from centroidkv.routing.history import History
from centroidkv.serving.answers import AnswerStore
from word_bank import PASSAGES, QUESTIONS, Built, ask, search

WRITES = [
    (vault_module, "write_atomic"),
    (pointer_module, "write_atomic"),
    (Manifest, "copy_prefixes"),
    (Manifest, "drop_prefixes"),
    (Manifest, "set_prefix"),
    (History, "add_built"),
    (History, "place"),
    (History, "replace_passages"),
    (AnswerStore, "put"),
    (AnswerStore, "delete_scope"),
    (Path, "unlink"),
]
NEW = "please block my lost card"
CHANGED = [Passage.of(t.replace("five days", "six days")) for t in PASSAGES.values()]


class Killed(BaseException):
    """The process ends here."""


class Guillotine:
    """Lets so many writes happen, and none after."""

    def __init__(self) -> None:
        self.num_writes = 0
        self.limit: int | None = None

    def guard(self, write: Callable[..., object]) -> Callable[..., object]:
        def guarded(*arguments: object, **named: object) -> object:
            if self.limit is not None and self.num_writes >= self.limit:
                raise Killed
            self.num_writes += 1
            return write(*arguments, **named)

        return guarded


@pytest.fixture
def guillotine() -> Iterator[Guillotine]:
    blade = Guillotine()
    with pytest.MonkeyPatch.context() as patch:
        for owner, name in WRITES:
            patch.setattr(owner, name, blade.guard(getattr(owner, name)))
        yield blade


def refit(engine: Engine) -> None:
    engine.refit(lambda q: ask(engine, q), num_clusters=3)


def refresh(engine: Engine) -> None:
    engine.refresh(CHANGED, lambda q: ask(engine, q))


def build(engine: Engine) -> None:
    engine.build(questions=QUESTIONS[:8], retriever=search, num_clusters=3, max_pins=1, pca_dim=8)


def use(engine: Engine) -> None:
    engine.versions.use(1)


def try_and_promote(engine: Engine) -> None:
    engine.versions.trial(1, share=0.5)
    engine.versions.promote()


def try_and_roll_back(engine: Engine) -> None:
    engine.versions.trial(1, share=0.5)
    engine.versions.rollback()


CHANGES = [refit, refresh, build, use, try_and_promote, try_and_roll_back]


@pytest.mark.parametrize("change", CHANGES, ids=lambda change: change.__name__)
def test_a_change_that_is_killed_between_two_writes_harms_nothing(
    built: Built, tmp_path: Path, open_engine, guillotine: Guillotine, change
) -> None:
    original = tmp_path / "store"
    done = shutil.copytree(original, tmp_path / "done")
    with open_engine(done, keep_versions=1) as engine:
        guillotine.num_writes = 0
        change(engine)
        engine.flush()
        num_writes = guillotine.num_writes
        after = {v.plan_id: v.state for v in engine.versions.kept()}
    assert num_writes >= 1
    for limit in range(num_writes):
        begun = shutil.copytree(original, tmp_path / f"begun-{limit}")
        left = tmp_path / f"left-{limit}"
        with open_engine(begun, keep_versions=1) as engine:
            guillotine.num_writes, guillotine.limit = 0, limit
            with pytest.raises(Killed):
                change(engine)
            shutil.copytree(begun, left)
            guillotine.limit = None
        with open_engine(left, keep_versions=1) as engine:
            answer = ask(engine, NEW)
            assert answer.token_ids == ask(engine, NEW, reuse="off").token_ids
            assert answer.usage.plan in {built.first, built.second, *after}
            assert engine.check().is_clean, (limit, engine.check().problems)
            change(engine)
            states = {v.state for v in engine.versions.kept()}
            assert states == set(after.values()), limit
            assert ask(engine, NEW).token_ids == ask(engine, NEW, reuse="off").token_ids
            assert engine.check().is_clean
