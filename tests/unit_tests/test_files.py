"""A file is written whole or not at all."""

import tempfile
import threading
from pathlib import Path

import pytest

from centroidkv.errors import ConfigError, StoreError
from centroidkv.files import MOST_ALIKE, UNFINISHED, set_aside, user_cache_folder, write_atomic
from centroidkv.routing.index_folder import prepare_folder
from centroidkv.store import Store


def test_the_parts_are_written_one_behind_the_other(tmp_path: Path) -> None:
    path = tmp_path / "new" / "folder" / "file"
    write_atomic(path, b"one ", memoryview(b"two"), bytearray(b" three"))
    assert path.read_bytes() == b"one two three"
    assert list(path.parent.iterdir()) == [path]


def test_no_parts_make_an_empty_file(tmp_path: Path) -> None:
    write_atomic(tmp_path / "file")
    assert (tmp_path / "file").read_bytes() == b""


def test_an_old_file_is_replaced(tmp_path: Path) -> None:
    path = tmp_path / "file"
    write_atomic(path, b"a much longer content than the new one")
    write_atomic(path, b"new")
    assert path.read_bytes() == b"new"


def test_files_and_folders_are_their_owners_alone(tmp_path: Path) -> None:
    write_atomic(tmp_path / "folder" / "file", b"x")
    assert (tmp_path / "folder" / "file").stat().st_mode & 0o777 == 0o600
    assert (tmp_path / "folder").stat().st_mode & 0o777 == 0o700


def test_a_write_that_fails_leaves_the_old_file_and_nothing_else(tmp_path: Path) -> None:
    path = tmp_path / "file"
    write_atomic(path, b"old")
    with pytest.raises(TypeError):
        write_atomic(path, b"new", "not bytes")  # type: ignore[arg-type]
    assert path.read_bytes() == b"old"
    assert list(tmp_path.iterdir()) == [path]


def test_a_file_that_cannot_be_put_in_place_leaves_nothing(tmp_path: Path) -> None:
    (tmp_path / "folder").mkdir()
    (tmp_path / "folder" / "kept").write_text("x")
    with pytest.raises(OSError, match="folder"):
        write_atomic(tmp_path / "folder", b"new")
    assert [p.name for p in tmp_path.iterdir()] == ["folder"]


def test_a_folder_that_cannot_be_made_is_an_os_error(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("x")
    with pytest.raises(OSError, match="file"):
        write_atomic(tmp_path / "file" / "below", b"new")


def test_readers_see_all_of_a_file_or_the_one_before(tmp_path: Path) -> None:
    path = tmp_path / "file"
    contents = [bytes([i]) * 50_000 for i in range(20)]
    write_atomic(path, contents[0])
    writer = threading.Thread(target=lambda: [write_atomic(path, c) for c in contents])
    writer.start()
    seen = {path.read_bytes()}
    while writer.is_alive():
        seen.add(path.read_bytes())
    writer.join()
    assert seen <= set(contents)


def test_the_cache_folder_can_be_chosen(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("CENTROIDKV_CACHE", str(tmp_path / "own"))
    assert user_cache_folder() == tmp_path / "own"
    monkeypatch.delenv("CENTROIDKV_CACHE")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert user_cache_folder() == tmp_path / "centroidkv"
    monkeypatch.setenv("XDG_CACHE_HOME", "")
    assert user_cache_folder() == Path.home() / ".cache" / "centroidkv"


@pytest.fixture
def homeless(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """A user without a home, as in a container that runs under a number that nobody has."""

    def unknown(number: int) -> None:
        raise KeyError(number)

    for name in ("HOME", "XDG_CACHE_HOME", "CENTROIDKV_CACHE"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(pytest.importorskip("pwd"), "getpwuid", unknown)
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    return tmp_path


def test_without_a_home_files_lie_among_the_temporary_ones(homeless: Path) -> None:
    folder = user_cache_folder()
    assert folder.parent == homeless and folder == user_cache_folder()
    assert folder.stat().st_mode & 0o777 == 0o700


@pytest.mark.parametrize("kind", ["link", "file", "open to all"])
def test_a_temporary_folder_that_is_not_ours_alone_is_not_used(homeless: Path, kind: str) -> None:
    folder = user_cache_folder()
    folder.rmdir()
    if kind == "link":
        (homeless / "elsewhere").mkdir(mode=0o700)
        folder.symlink_to(homeless / "elsewhere")
    elif kind == "file":
        folder.write_text("")
    else:
        folder.mkdir()
        folder.chmod(0o777)
    with pytest.raises(ConfigError, match="CENTROIDKV_CACHE"):
        user_cache_folder()


def test_a_store_that_was_killed_while_it_was_made_is_made_again(tmp_path: Path) -> None:
    folder = tmp_path / "store"
    folder.mkdir()
    (folder / f"{UNFINISHED}abc").write_bytes(b"{")
    Store.open(folder).close()
    assert (folder / "store.json").exists()
    (tmp_path / "other").mkdir()
    (tmp_path / "other/notes.txt").write_text("mine")
    with pytest.raises(StoreError, match="not a centroidkv store"):
        Store.open(tmp_path / "other")


def test_a_second_damage_does_not_write_over_the_first(tmp_path: Path) -> None:
    path, quarantine = tmp_path / "history.sqlite", tmp_path / "quarantine"
    for number in range(MOST_ALIKE + 2):
        path.write_text(str(number))
        if number == 1:
            path.with_name("history.sqlite-wal").write_text("log")
        set_aside(path, quarantine)
    kept = {p.name: p.read_text() for p in quarantine.iterdir()}
    assert kept.pop("history.sqlite.2-wal") == "log"
    names = [path.name, *(f"{path.name}.{n}" for n in range(2, MOST_ALIKE + 1))]
    latest = str(MOST_ALIKE + 1)
    assert kept == dict(zip(names, [*map(str, range(MOST_ALIKE - 1)), latest], strict=True))


def test_setting_nothing_aside_loses_nothing_that_was(tmp_path: Path) -> None:
    path, quarantine = tmp_path / "block", tmp_path / "quarantine"
    path.write_text("damaged")
    set_aside(path, quarantine, most=1)
    set_aside(path, quarantine, most=1)
    assert (quarantine / "block").read_text() == "damaged"


def test_of_folders_set_aside_the_first_and_the_latest_are_kept(tmp_path: Path) -> None:
    folder, quarantine = tmp_path / "chroma", tmp_path / "quarantine"
    for number in range(4):
        folder.mkdir(exist_ok=True)
        (folder / "file").write_text(str(number))
        prepare_folder(folder, quarantine)
    kept = {p.name: (p / "file").read_text() for p in quarantine.iterdir()}
    assert kept == {"chroma": "0", "chroma.2": "3"}
