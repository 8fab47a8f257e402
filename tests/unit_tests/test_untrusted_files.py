"""Files that others wrote: refused by a documented error, within bounds, and never run."""

import io
import json
import os
import random
import sqlite3
import zipfile
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from centroidkv.bounds import one_line, plain_json, read_arrays, read_bounded
from centroidkv.errors import CacheCorrupt, CacheMismatch, ConfigError
from centroidkv.knowledge import read_questions
from centroidkv.kv.blocks import block_id
from centroidkv.kv.codec import load_block, parse_block
from centroidkv.kv.disk import DiskBlocks
from centroidkv.routing.plan import load_plan
from centroidkv.routing.pointer import Pointer, read_pointer, write_pointer
from untrusted_parts import ROOT, Target, small_block, targets, with_checksum

TARGETS = targets()


@pytest.mark.parametrize("target", TARGETS.values(), ids=TARGETS)
def test_sound_files_are_read(target: Target) -> None:
    for seed in target.seeds:
        target.read(seed)


@pytest.mark.parametrize("name", ["blocks", "sealed", "plan", "questions"])
@given(numbers=st.data())
@settings(max_examples=40, deadline=None)
def test_altered_files_raise_nothing_but_what_is_documented(name: str, numbers) -> None:
    """The fuzzer's targets, for machines that have no fuzzer."""
    target = TARGETS[name]
    altered = bytearray(numbers.draw(st.sampled_from(target.seeds)))
    for _ in range(numbers.draw(st.integers(0, 3))):
        altered[numbers.draw(st.integers(0, len(altered) - 1))] = numbers.draw(st.integers(0, 255))
    cut = numbers.draw(st.one_of(st.none(), st.integers(0, len(altered))))
    seed = numbers.draw(st.integers(0, 1 << 16))
    target.read(target.respelled(bytes(altered[:cut]), random.Random(seed)))


@pytest.mark.parametrize("seed", range(24))
def test_odd_values_in_a_manifest_cost_the_store_and_no_request(seed: int) -> None:
    target = TARGETS["manifest"]
    target.read(target.respelled(target.seeds[0], random.Random(seed)))


# bounds


def test_only_regular_files_of_bounded_size_are_read(tmp_path: Path) -> None:
    path, pipe, link = tmp_path / "file", tmp_path / "pipe", tmp_path / "link"
    path.write_bytes(b"12345")
    os.mkfifo(pipe)
    link.symlink_to(path)
    assert read_bounded(path, 5) == read_bounded(link, 5) == b"12345"
    with pytest.raises(OSError, match="more than the 4"):
        read_bounded(path, 4)
    for odd in (pipe, tmp_path, Path("/dev/zero")):
        with pytest.raises(OSError):
            read_bounded(odd, 5)


@pytest.mark.parametrize(
    "text", ["NaN", "[Infinity]", "1e999", "-1e999", "[" * 100_000, "{", "", "9" * 5000]
)
def test_json_that_is_not_plain_is_refused(text: str) -> None:
    with pytest.raises(ValueError):
        plain_json(text)


def test_what_stands_in_a_message_is_one_short_line() -> None:
    assert one_line("a\nb\r\n\tc") == "a b c"
    assert len(one_line("x" * 10_000)) == 200


# archives of arrays


def archive(members: dict[str, bytes], kind: int = zipfile.ZIP_STORED) -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", kind) as file:
        for name, member in members.items():
            file.writestr(name, member)
    return buffer.getvalue()


def array_file(header: str, body: bytes = b"") -> bytes:
    spelled = header.encode() + b" " * (117 - len(header)) + b"\n"
    return b"\x93NUMPY\x01\x00" + len(spelled).to_bytes(2, "little") + spelled + body


@pytest.mark.parametrize("dtype", ["f4", "f8", "f2", "u1", "i8", "?"])
def test_arrays_come_back_as_numpy_wrote_them(dtype: str) -> None:
    arrays = {
        "a": np.arange(12).reshape(3, 4).astype(dtype),
        "b": np.asfortranarray(np.arange(6).reshape(2, 3).astype(dtype)),
        "c": np.empty((0, 5), dtype),
        "d": np.array(1, dtype),
    }
    buffer = io.BytesIO()
    np.savez(buffer, **arrays)
    found = read_arrays(buffer.getvalue())
    assert list(found) == list(arrays)
    for name, array in arrays.items():
        assert found[name].dtype == array.dtype and np.array_equal(found[name], array)


def test_a_bomb_is_not_unpacked() -> None:
    bomb = archive({"a.npy": b"\0" * (16 << 20)}, zipfile.ZIP_DEFLATED)
    assert len(bomb) < 1 << 20
    with pytest.raises(ValueError, match="compressed"):
        read_arrays(bomb)


@pytest.mark.parametrize(
    "header",
    [
        "{'descr': '<f8', 'fortran_order': False, 'shape': (1099511627776,), }",
        "{'descr': '<f8', 'fortran_order': False, 'shape': (999999999999, 999999999999), }",
        "{'descr': '|O', 'fortran_order': False, 'shape': (), }",
        "{'descr': '<f8', 'fortran_order': False, 'shape': (-1,), }",
        "{'descr': [('a', '<f8')], 'fortran_order': False, 'shape': (1,), }",
        "{'descr': '<f1', 'fortran_order': False, 'shape': (0,), }",
        "((((((((((((((((((((((((((((",
    ],
)
def test_an_array_that_is_not_of_its_bytes_is_refused(header: str) -> None:
    with pytest.raises(ValueError):
        read_arrays(archive({"a.npy": array_file(header)}))


def test_a_plan_whose_parts_do_not_fit_is_refused(tmp_path: Path) -> None:
    path, target = tmp_path / "one.plan", TARGETS["plan"]
    refused = 0
    for seed in range(60):
        path.write_bytes(target.respelled(target.seeds[0], random.Random(seed)))
        try:
            load_plan(path)
        except CacheCorrupt as error:
            refused += "checksum" not in str(error)
    assert refused > 30, "the checksums fit, so it is the contents that are refused"


def test_a_pointer_to_no_version_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "one.pointer"
    for odd in (Pointer(-1), Pointer("1"), Pointer(1, share=2.0), Pointer(1, trial=[])):  # type: ignore[arg-type]
        write_pointer(path, odd)
        with pytest.raises(CacheCorrupt, match="not a pointer"):
            read_pointer(path)


# blocks


def forged(shape: list[int], dtype: str, body: bytes) -> bytes:
    """A raw block of these keys and values, whose checksum fits."""
    tokens = tuple(range(shape[2]))
    metadata = {
        "format": "centroidkv-block-1",
        "id": block_id(ROOT, tokens),
        "parent": ROOT,
        "namespace": ROOT,
        "tokens": np.asarray(tokens, ">u4").tobytes().hex(),
        "dtype": "float32",
    }
    half = len(body) // 2
    entries = {
        name: {"dtype": dtype, "shape": shape, "data_offsets": [start, start + half]}
        for name, start in (("keys", 0), ("values", half))
    }
    return with_checksum(metadata, entries, body)


def test_a_forged_block_of_sound_numbers_would_pass_but_no_other_type() -> None:
    assert parse_block(forged([1, 1, 8, 4], "F32", bytes(256)), "x").block.num_tokens == 8
    with pytest.raises(CacheCorrupt, match="another type"):
        parse_block(forged([1, 1, 8, 4], "U8", bytes(64)), "x")


@pytest.mark.parametrize("shape", [[1 << 40, 1, 8, 4], [-1, 1, 8, 4], [1, 1, 8, 1 << 62], [8], []])
def test_absurd_shapes_are_refused(shape: list[int]) -> None:
    sound = forged([1, 1, 8, 4], "F32", bytes(256))
    altered = sound.replace(b'"shape":[1,1,8,4]', b'"shape":' + json.dumps(shape).encode())
    with pytest.raises((CacheCorrupt, CacheMismatch)):
        parse_block(altered, "x")


def test_a_block_larger_than_any_is_not_read(tmp_path: Path) -> None:
    path = tmp_path / "large"
    with path.open("wb") as file:
        file.truncate(2 << 30)
    with pytest.raises(OSError, match="more than the"):
        load_block(path)


# paths


@pytest.mark.parametrize("odd", ["../" * 21 + "x", "/etc/passwd", "", "A" * 64, "a" * 63 + "\n"])
def test_what_is_no_block_id_never_becomes_a_path(tmp_path: Path, odd: str) -> None:
    disk = DiskBlocks(tmp_path, budget_bytes=1 << 20)
    with pytest.raises(CacheMismatch):
        disk.path(odd)
    disk.close()


def test_an_id_in_the_manifest_deletes_no_file_outside(tmp_path: Path) -> None:
    folder = tmp_path / "store"
    folder.mkdir()
    victim = tmp_path / "victim.safetensors"
    victim.write_bytes(b"keep me")
    disk = DiskBlocks(folder, budget_bytes=1 << 14)
    own = disk.put(ROOT, range(64), small_block())
    disk.close()
    db = sqlite3.connect(folder / "manifest.sqlite")
    db.create_function("worth", 5, lambda *_: 0.0, deterministic=True)
    db.execute("UPDATE blocks SET id = '../../victim', last_used = 0 WHERE id = ?", (own,))
    db.commit()
    db.close()
    disk = DiskBlocks(folder, budget_bytes=1 << 14)
    for start in range(1, 20):
        disk.put(ROOT, range(start, start + 64), small_block())
    assert victim.read_bytes() == b"keep me"
    assert disk.manifest.faults() == [] and not disk.manifest.has("../../victim")
    disk.close()


def test_a_circle_in_a_manifest_ends(tmp_path: Path) -> None:
    disk = DiskBlocks(tmp_path, budget_bytes=1 << 20)
    own = disk.put(ROOT, range(64), small_block())
    assert own is not None
    other = sqlite3.connect(tmp_path / "manifest.sqlite")
    other.execute("UPDATE blocks SET parent = id")
    other.commit()
    other.close()
    assert disk.manifest.chain(own) == []
    disk.close()


# what the fuzzer found


def test_a_header_over_two_lines_is_told_in_one(tmp_path: Path) -> None:
    path = tmp_path / "q.csv"
    path.write_text('qiutoesn,domaido I lost,"""\n?,?",\n')
    with pytest.raises(ConfigError) as told:
        read_questions(path)
    assert "\n" not in str(told.value)


def test_a_manifest_with_names_that_are_no_text_is_made_again(tmp_path: Path) -> None:
    path = tmp_path / "manifest.sqlite"
    sound = TARGETS["manifest"].seeds[0]
    path.write_bytes(sound.replace(b"tokens BLOB", b"tok\x9f\x9f\x9f BLOB"))
    disk = DiskBlocks(tmp_path, budget_bytes=1 << 20)
    assert disk.manifest.is_empty() and (tmp_path / "quarantine" / path.name).exists()
    disk.close()
