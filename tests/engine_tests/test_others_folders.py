"""Stores on volumes that belong to somebody else, as orchestrators mount them."""

import os
from collections.abc import Callable
from pathlib import Path

import pytest

from another_user import NOBODY, as_nobody, needs_root, volume
from centroidkv import Engine
from centroidkv.errors import StoreError
from centroidkv.store_marker import create_store
from word_bank import QUESTIONS, ask, build_and_warm, search

__all__ = ["volume"]

OPEN = """
store = Store.open(folder)
print("read-only:", store.read_only, check_store(store).problems)
store.close()
"""


@needs_root
def test_a_store_on_a_volume_of_the_group_is_made_with_one_warning(volume: Path) -> None:
    os.chown(volume, 0, NOBODY)
    volume.chmod(0o2770)
    lost = volume / "lost+found"
    lost.mkdir()
    lost.chmod(0o700)
    said = as_nobody(OPEN + OPEN, volume)
    assert said.count("read-only: False []") == 2
    assert said.count("belongs to root and keeps its mode 0770") == 1
    assert (volume / "store.json").stat().st_mode & 0o777 == 0o600


@needs_root
def test_a_folder_that_cannot_be_written_is_refused(volume: Path) -> None:
    said = as_nobody("try: Store.open(folder)\nexcept StoreError as e: print(e)", volume)
    assert "cannot create a store at" in said


def test_only_a_folder_called_lost_and_found_is_not_foreign(tmp_path: Path) -> None:
    (tmp_path / "a/lost+found").mkdir(parents=True)
    create_store(tmp_path / "a", None)
    (tmp_path / "b").mkdir()
    (tmp_path / "b/lost+found").write_text("a file")
    (tmp_path / "c").mkdir()
    (tmp_path / "c/lost+found").symlink_to(tmp_path)
    for name in ("b", "c"):
        with pytest.raises(StoreError, match="is not a centroidkv store"):
            create_store(tmp_path / name, None)


def owners(folder: Path) -> dict[str, int]:
    return {str(p.relative_to(folder)): p.stat().st_uid for p in (folder, *folder.rglob("*"))}


@needs_root
def test_what_root_writes_into_a_users_store_is_the_users(
    open_engine: Callable[..., Engine], volume: Path
) -> None:
    os.chown(volume, NOBODY, NOBODY)
    volume.chmod(0o700)
    with open_engine(volume) as engine:
        build_and_warm(engine)
        for question in QUESTIONS:
            ask(engine, question)
        engine.flush()
        engine.refit(lambda question: ask(engine, question), retriever=search, num_clusters=2)
        engine.flush()
    found = owners(volume)
    assert len(found) > 10
    assert {name: uid for name, uid in found.items() if uid != NOBODY} == {}
    assert "read-only: False []" in as_nobody(OPEN, volume)


@needs_root
def test_what_may_not_be_read_is_neither_corrupt_nor_set_aside(
    open_engine: Callable[..., Engine], volume: Path
) -> None:
    os.chown(volume, NOBODY, NOBODY)
    with open_engine(volume) as engine:
        build_and_warm(engine)
        namespace = engine.router.plan.namespace
    blocks = sorted(volume.glob("blocks/??/*.safetensors"))
    plans = [*volume.glob("plans/*.plan"), *volume.glob("plans/*.pointer")]
    for path in (blocks[0], *plans):
        os.chown(path, 0, 0)
    before = owners(volume)
    said = as_nobody(
        f"""
store = Store.open(folder)
row = store.blocks.disk.manifest.get({blocks[0].stem!r})
print("block:", store.blocks.disk.read(row), store.blocks.disk.read(row))
plan, problems = store.plans.in_force({namespace!r})
print("plan:", plan, *problems)
report = check_store(store, repair=True)
print("repaired:", report.repaired)
print("problems:", *report.problems, sep="\\n")
store.close()
""",
        volume,
    )
    assert "block: None None" in said
    assert said.count("block ignored") == 1
    assert "plan: None" in said
    assert "repaired: []" in said
    for path in (blocks[0], *plans):
        assert f"{path} may not be read by this user: it belongs to root" in said
    assert "computed again" not in said
    assert "damaged" not in said
    after = owners(volume)
    assert {k: v for k, v in after.items() if "quarantine" in k} == {}
    assert {k: v for k, v in before.items() if v == 0} == {k: v for k, v in after.items() if v == 0}


@needs_root
@pytest.mark.parametrize("mode", [0o600, 0o644])
def test_a_manifest_of_roots_is_not_made_again(volume: Path, mode: int) -> None:
    create_store(volume, None)
    as_root = volume / "manifest.sqlite"
    as_root.write_bytes(b"")
    as_root.chmod(mode)
    os.chown(volume, NOBODY, NOBODY)
    for name in ("store.json", ".writing-store.json"):
        os.chown(volume / name, NOBODY, NOBODY)
    said = as_nobody("try: Store.open(folder)\nexcept StoreError as e: print(e)", volume)
    assert f"{as_root} may not be" in said
    assert "it belongs to root" in said
    assert not (volume / "quarantine").exists()
