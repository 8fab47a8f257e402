"""Links in a store that somebody else may have written: what they lead to is left alone."""

import shutil
import sqlite3
import struct
from collections.abc import Callable
from functools import partial
from pathlib import Path

import pytest

from centroidkv import Engine
from centroidkv.errors import IndexUnavailable, StoreError
from centroidkv.files import set_aside
from centroidkv.privacy.files import UntoldPlace, files_set_aside
from centroidkv.privacy.forget_log import ForgetLog
from centroidkv.privacy.wanted import Wanted
from centroidkv.routing.index_folder import (
    digest_of,
    embedded_faults,
    erase_folder,
    prepare_folder,
    shield,
    zero_unused,
)
from centroidkv.sqlite_files import open_to_write
from centroidkv.store import Store
from centroidkv.store_marker import change_key, create_store
from centroidkv.versions.files import VersionFiles

WORDS = b"somebody's own words " * 200


@pytest.fixture
def outside(tmp_path: Path) -> Path:
    """A folder beside the store with a file in it."""
    folder = tmp_path / "outside"
    folder.mkdir(mode=0o755)
    (folder / "kept").write_bytes(WORDS)
    (folder / "kept").chmod(0o644)
    return folder


def is_untouched(outside: Path) -> bool:
    (file,) = outside.iterdir()
    is_same = file.read_bytes() == WORDS and file.stat().st_mode & 0o777 == 0o644
    return is_same and outside.stat().st_mode & 0o777 == 0o755


@pytest.mark.parametrize(
    "name",
    ["quarantine", "chroma", "blocks", "plans", "locks", "heads", "forgetting", "blocks/ab"],
)
def test_a_store_with_a_link_to_a_folder_is_refused(
    tmp_path: Path, outside: Path, name: str
) -> None:
    Store.open(tmp_path / "store").close()
    link = tmp_path / "store" / name
    shutil.rmtree(link, ignore_errors=True)
    link.parent.mkdir(exist_ok=True)
    link.symlink_to(outside)
    with pytest.raises(StoreError, match=f"{name} is a link") as caught:
        Store.open(tmp_path / "store")
    assert "\n" not in str(caught.value)
    assert is_untouched(outside)


@pytest.mark.parametrize(
    "name",
    [".probe", "manifest.sqlite", "drafts.sqlite-wal", "chroma.lock", "plans/x.lock"],
)
def test_a_store_with_a_link_to_a_file_is_refused(tmp_path: Path, outside: Path, name: str) -> None:
    Store.open(tmp_path / "store").close()
    link = tmp_path / "store" / name
    link.unlink(missing_ok=True)
    link.parent.mkdir(exist_ok=True)
    link.symlink_to(outside / "kept")
    with pytest.raises(StoreError, match="is a link"):
        Store.open(tmp_path / "store")
    assert is_untouched(outside)


def test_a_link_to_a_whole_store_opens_it(tmp_path: Path) -> None:
    Store.open(tmp_path / "store").close()
    (tmp_path / "link").symlink_to(tmp_path / "store")
    Store.open(tmp_path / "link", create=False).close()


def test_neither_making_a_store_nor_a_new_key_locks_a_file_elsewhere(
    tmp_path: Path, outside: Path
) -> None:
    store, old, new = tmp_path / "store", bytes(32), bytes([1] * 32)
    store.mkdir()
    (store / ".writing-store.json").symlink_to(outside / "kept")
    with pytest.raises(StoreError, match="is a link"):
        create_store(store, old)
    (store / ".writing-store.json").unlink()
    create_store(store, old)
    (store / ".writing-store.json").unlink(missing_ok=True)
    (store / ".writing-store.json").symlink_to(outside / "kept")
    with pytest.raises(StoreError, match="is a link"):
        change_key(store, old, new)
    assert is_untouched(outside)


# what is set aside


@pytest.mark.parametrize("before_s", [None, 1e12])
def test_forgetting_unlinks_links_in_the_quarantine(
    tmp_path: Path, outside: Path, before_s: float | None
) -> None:
    quarantine = tmp_path / "quarantine"
    (quarantine / "chroma").mkdir(parents=True)
    (quarantine / "chroma" / "deep").symlink_to(outside)
    (quarantine / "folder").symlink_to(outside)
    (quarantine / "file").symlink_to(outside / "kept")
    (quarantine / "nowhere").symlink_to(tmp_path / "nowhere")
    place = UntoldPlace("quarantine", partial(files_set_aside, quarantine))
    assert place.forget(Wanted(everything=before_s is None, before_s=before_s)) == 4
    assert list(quarantine.iterdir()) == [] and is_untouched(outside)


def test_a_quarantine_that_is_a_link_is_unlinked_and_nothing_moved_there(
    tmp_path: Path, outside: Path
) -> None:
    quarantine, damaged = tmp_path / "quarantine", tmp_path / "history.sqlite"
    quarantine.symlink_to(outside)
    damaged.write_bytes(b"damaged")
    with pytest.raises(OSError, match="a link"):
        set_aside(damaged, quarantine)
    assert (
        UntoldPlace("quarantine", partial(files_set_aside, quarantine)).forget(
            Wanted(everything=True)
        )
        == 1
    )
    assert not quarantine.is_symlink() and is_untouched(outside)


# files of others' code


def test_sqlite_is_not_led_to_a_file_elsewhere(tmp_path: Path, outside: Path) -> None:
    for name in ("kept", "new"):
        link = tmp_path / f"{name}.sqlite"
        link.symlink_to(outside / name)
        with pytest.raises(sqlite3.OperationalError, match="is a link"):
            open_to_write(link, "CREATE TABLE IF NOT EXISTS said (text TEXT)")
    assert is_untouched(outside)


def index_with_a_link(folder: Path, outside: Path) -> Path:
    """An index whose header claims that the words outside are room that it does not use."""
    segment = folder / "segment"
    segment.mkdir(parents=True)
    (segment / "header.bin").write_bytes(struct.pack("<i4Q", 1, 0, len(WORDS), 0, 1))
    (segment / "data_level0.bin").symlink_to(outside / "kept")
    (folder / "folder").symlink_to(outside)
    folder.with_name("chroma.digest").write_bytes(digest_of(folder).encode())
    return folder


def test_an_index_is_neither_zeroed_nor_shielded_behind_links(
    tmp_path: Path, outside: Path
) -> None:
    folder = index_with_a_link(tmp_path / "chroma", outside)
    zero_unused(folder)
    shield(folder)
    assert is_untouched(outside)


def test_room_that_an_index_does_not_use_is_zeroed_as_far_as_the_file_goes(tmp_path: Path) -> None:
    for name, reserved in (("fits", 3 << 20), ("claims", 1 << 60)):
        segment = tmp_path / name
        segment.mkdir()
        (segment / "header.bin").write_bytes(struct.pack("<i4Q", 1, 0, reserved, 5, 1))
        (segment / "data_level0.bin").write_bytes(b"x" * (3 << 20))
    zero_unused(tmp_path)
    assert (tmp_path / "fits/data_level0.bin").read_bytes() == b"xxxxx".ljust(3 << 20, b"\0")
    assert (tmp_path / "claims/data_level0.bin").read_bytes() == b"x" * (3 << 20)


def test_an_index_with_links_is_set_aside_whatever_its_digest(
    tmp_path: Path, outside: Path
) -> None:
    folder = index_with_a_link(tmp_path / "chroma", outside)
    assert len(embedded_faults(folder)) == 1
    prepare_folder(folder, tmp_path / "quarantine")
    assert list(folder.iterdir()) == []
    assert (tmp_path / "quarantine/chroma/folder").is_symlink() and is_untouched(outside)


# locks that cannot be had


def test_a_store_whose_index_cannot_be_locked_routes_from_the_plan(
    open_engine: Callable[..., Engine], built: object, tmp_path: Path
) -> None:
    (tmp_path / "store/chroma.lock").unlink(missing_ok=True)
    (tmp_path / "store/chroma.lock").mkdir()
    engine = open_engine()
    assert engine.stats().health.routes_by == "memory"
    with pytest.raises(IndexUnavailable, match="locked"):
        erase_folder(tmp_path / "store/chroma")


def test_a_seal_that_cannot_be_read_costs_the_index_alone(
    open_engine: Callable[..., Engine], built: object, tmp_path: Path
) -> None:
    (tmp_path / "store/chroma.digest").unlink(missing_ok=True)
    (tmp_path / "store/chroma.digest").mkdir()
    assert open_engine().stats().health.routes_by == "memory"


def test_locks_of_plans_and_of_forgetting_that_cannot_be_had_are_store_errors(
    tmp_path: Path,
) -> None:
    store = Store.open(tmp_path / "store")
    files = VersionFiles(store, "ab" * 32)
    (store.path / "plans" / f"{files.namespace[-16:]}.lock").mkdir(parents=True)
    with pytest.raises(StoreError, match="cannot lock"), files.writing():
        pass
    (store.path / "forgetting/lock").mkdir(parents=True)
    with pytest.raises(StoreError, match="cannot lock"), ForgetLog(store.path).alone():
        pass
    store.close()
