"""Digests of files follow their content, and are remembered only as long as they hold."""

import hashlib
import json
import os
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from centroidkv.fingerprint import (
    SAMPLE_BYTES,
    file_digest,
    fingerprint,
    folder_digest,
    sampled_digest,
)


@pytest.fixture
def memory(tmp_path: Path) -> Path:
    return tmp_path / "cache" / "digests.json"


@pytest.fixture
def file(tmp_path: Path) -> Path:
    (tmp_path / "weights.bin").write_bytes(b"weights")
    return tmp_path / "weights.bin"


def sha(raw: bytes) -> str:
    return hashlib.sha256(raw).hexdigest()


def test_fingerprints_never_change() -> None:
    assert (
        fingerprint("model", "tokenizer")
        == "6bc6cd6fbe0a54fd8ae7594dea4211da571f1a64bb3da46a9fc459c173bad2a1"
    )
    assert fingerprint() == sha(b"")


@given(st.lists(st.text(), max_size=4), st.lists(st.text(), max_size=4))
def test_parts_are_kept_apart(one: list[str], other: list[str]) -> None:
    assert (fingerprint(*one) == fingerprint(*other)) == (one == other)


def test_any_text_has_a_fingerprint() -> None:
    assert fingerprint("\ud800") != fingerprint("?")


def test_a_files_digest_is_that_of_its_content(file: Path, memory: Path) -> None:
    assert file_digest(file) == sha(b"weights")
    assert file_digest(file, memory=memory) == sha(b"weights")
    assert file_digest(file, memory=memory) == sha(b"weights")
    assert memory.exists()


def test_a_remembered_digest_is_not_computed_again(file: Path, memory: Path) -> None:
    file_digest(file, memory=memory)
    memory.write_text(json.dumps(dict.fromkeys(json.loads(memory.read_text()), sha(b"remembered"))))
    assert file_digest(file, memory=memory) == sha(b"remembered")
    assert file_digest(file) == sha(b"weights")


def test_another_file_of_the_same_size_and_time_is_hashed_again(file: Path, memory: Path) -> None:
    """As a copy with its times kept puts it there, or an image that can be built again."""
    file_digest(file, memory=memory)
    stat = file.stat()
    other = file.with_name("other")
    other.write_bytes(b"sthgiew")
    os.utime(other, ns=(stat.st_atime_ns, stat.st_mtime_ns))
    other.replace(file)
    assert file_digest(file, memory=memory) == sha(b"sthgiew")


@pytest.mark.parametrize("size", [7, SAMPLE_BYTES + 1, 3 * SAMPLE_BYTES])
def test_a_sample_tells_files_apart_that_the_file_system_does_not(file: Path, size: int) -> None:
    sampled = set()
    for content in (b"a" * size, b"b" * size, b"a" * (size - 1) + b"b", b"b" + b"a" * (size - 1)):
        file.write_bytes(content)
        sampled.add(sampled_digest(file, size))
    assert len(sampled) == 4


def test_what_is_remembered_of_a_file_replaces_what_was(file: Path, memory: Path) -> None:
    memory.parent.mkdir()
    stat = file.stat()
    old = f"{file.resolve()}|{stat.st_size}|{stat.st_mtime_ns}"
    memory.write_text(json.dumps({old: sha(b"old"), "/another|1|2": sha(b"x"), "odd": 3}))
    assert file_digest(file, memory=memory) == sha(b"weights")
    kept = json.loads(memory.read_text())
    assert sorted(kept.values()) == sorted([sha(b"weights"), sha(b"x")]) and old not in kept


@pytest.mark.parametrize("content", [b"longer weights", b"sthgiew"])
def test_a_changed_file_is_hashed_again(file: Path, memory: Path, content: bytes) -> None:
    file_digest(file, memory=memory)
    before = file.stat().st_mtime_ns
    file.write_bytes(content)
    os.utime(file, ns=(before + 1, before + 1))
    assert file_digest(file, memory=memory) == sha(content)


@pytest.mark.parametrize("garbage", [b"", b"garbage", b"[]", b"\xff\xfe", b"3"])
def test_a_damaged_memory_is_as_none(file: Path, memory: Path, garbage: bytes) -> None:
    memory.parent.mkdir()
    memory.write_bytes(garbage)
    assert file_digest(file, memory=memory) == sha(b"weights")
    assert file_digest(file, memory=memory) == sha(b"weights")


def test_a_memory_that_cannot_be_written_costs_nothing_but_time(file: Path, tmp_path: Path) -> None:
    (tmp_path / "blocked").write_text("a file where a folder should be")
    assert file_digest(file, memory=tmp_path / "blocked" / "digests.json") == sha(b"weights")


def test_a_folders_digest_follows_names_and_contents(tmp_path: Path) -> None:
    def folder(name: str, **files: str) -> str:
        root = tmp_path / name
        root.mkdir()
        for file, content in files.items():
            (root / file).write_text(content)
        return folder_digest(list(root.iterdir()), root=root)

    first = folder("one", a="1", b="2")
    assert folder("two", b="2", a="1") == first
    others = [folder("3", a="1"), folder("4", a="1", c="2"), folder("5", a="2", b="1")]
    assert len({first, *others}) == 4


def test_a_folders_digest_does_not_depend_on_the_order_of_its_files(tmp_path: Path) -> None:
    paths = [tmp_path / n for n in "abc"]
    for path in paths:
        path.write_text(path.name)
    assert folder_digest(paths, root=tmp_path) == folder_digest(paths[::-1], root=tmp_path)
