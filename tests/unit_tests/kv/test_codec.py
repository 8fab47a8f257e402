"""A block comes back bit by bit, and nothing but that block comes back."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors import safe_open

from centroidkv.errors import CacheCorrupt, CacheError, CacheMismatch
from centroidkv.kv.blocks import block_id, namespace_id
from centroidkv.kv.codec import FORMAT, load_block, save_block
from centroidkv.types import KVBlock
from small_parts import make_block

NAMESPACE = namespace_id("test")


def save(path: Path, block: KVBlock, tokens: tuple[int, ...] | None = None) -> str:
    tokens = tuple(range(block.num_tokens)) if tokens is None else tokens
    own = block_id(NAMESPACE, tokens)
    save_block(path, block, ids=(own, NAMESPACE, NAMESPACE), token_ids=tokens)
    return own


def is_same(one: KVBlock, other: KVBlock) -> bool:
    return (
        (one.dtype, one.keys.dtype, one.keys.shape, one.values.shape)
        == (other.dtype, other.keys.dtype, other.keys.shape, other.values.shape)
        and one.keys.tobytes() == other.keys.tobytes()
        and one.values.tobytes() == other.values.tobytes()
    )


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "block.safetensors"


@pytest.mark.parametrize("dtype", ["float32", "float16", "bfloat16"])
@pytest.mark.parametrize("num_tokens", [1, 63, 64])
def test_a_block_comes_back_bit_by_bit(path: Path, dtype: str, num_tokens: int) -> None:
    block = make_block(num_tokens, dtype=dtype)
    own = save(path, block)
    stored = load_block(path)
    assert is_same(stored.block, block)
    expected = (own, NAMESPACE, NAMESPACE, tuple(range(num_tokens)))
    assert (stored.id, stored.parent, stored.namespace, stored.token_ids) == expected


def test_numbers_that_are_none_come_back_too(path: Path) -> None:
    block = make_block(3)
    block.keys[0, 0, 0] = [np.nan, np.inf, -np.inf, -0.0]
    save(path, block)
    assert is_same(load_block(path).block, block)


def test_a_view_of_a_longer_block_is_stored_by_itself(path: Path) -> None:
    part = make_block(64).part(10, 20)
    save(path, part)
    assert is_same(load_block(path).block, part)
    assert path.stat().st_size < 64 * make_block(1).num_bytes


def test_the_reported_size_is_that_of_the_file(path: Path) -> None:
    size = save_block(
        path, make_block(), ids=(NAMESPACE, NAMESPACE, NAMESPACE), token_ids=range(64)
    )
    assert size == path.stat().st_size


def test_saving_twice_writes_the_same_bytes(tmp_path: Path) -> None:
    for name in ("one", "two"):
        save(tmp_path / name, make_block())
    assert (tmp_path / "one").read_bytes() == (tmp_path / "two").read_bytes()


@pytest.mark.parametrize("dtype", ["float32", "float16", "bfloat16"])
def test_the_safetensors_library_opens_our_files(path: Path, dtype: str) -> None:
    block = make_block(dtype=dtype)
    own = save(path, block)
    with safe_open(path, framework="pt") as file:
        assert sorted(file.keys()) == ["keys", "values"]
        assert file.metadata()["id"] == own
        for name, expected in (("keys", block.keys), ("values", block.values)):
            tensor = file.get_tensor(name)
            assert str(tensor.dtype) == f"torch.{dtype}"
            raw = tensor.contiguous().view(torch.uint8).numpy().tobytes()
            assert raw == expected.tobytes()


@pytest.mark.parametrize("mask", [0x01, 0x20, 0x80])
def test_every_flipped_bit_is_noticed(path: Path, mask: int) -> None:
    """Every byte of the header, every seventh of the tensors."""
    save(path, make_block(8))
    sound = path.read_bytes()
    head = 8 + int.from_bytes(sound[:8], "little")
    unnoticed = []
    for place in [*range(head), *range(head, len(sound), 7), len(sound) - 1]:
        altered = bytearray(sound)
        altered[place] ^= mask
        path.write_bytes(altered)
        try:
            load_block(path)
        except CacheError:
            continue
        unnoticed.append((place, sound[max(0, place - 12) : place + 1]))
    assert unnoticed == []


def test_every_truncation_is_noticed(path: Path) -> None:
    save(path, make_block(8))
    sound = path.read_bytes()
    head = 8 + int.from_bytes(sound[:8], "little")
    for length in [*range(0, head + 9, 5), *range(head, len(sound), 31), len(sound) - 1]:
        path.write_bytes(sound[:length])
        with pytest.raises(CacheError):
            load_block(path)


def test_bytes_behind_the_tensors_are_noticed(path: Path) -> None:
    save(path, make_block(8))
    path.write_bytes(path.read_bytes() + b"\0")
    with pytest.raises(CacheCorrupt):
        load_block(path)


def test_two_blocks_with_swapped_headers_are_noticed(tmp_path: Path) -> None:
    files = [tmp_path / "one", tmp_path / "two"]
    for seed, file in enumerate(files):
        save(file, make_block(8, seed=seed), tuple(range(seed, seed + 8)))
    one, two = (f.read_bytes() for f in files)
    head = 8 + int.from_bytes(one[:8], "little")
    files[0].write_bytes(one[:head] + two[head:])
    with pytest.raises(CacheCorrupt, match="checksum"):
        load_block(files[0])


def rewrite_header(path: Path, change: dict[str, object], metadata: dict[str, object]) -> None:
    raw = path.read_bytes()
    size = int.from_bytes(raw[:8], "little")
    header = json.loads(raw[8 : 8 + size])
    header.update(change)
    header["__metadata__"].update(metadata)
    new = json.dumps(header).encode()
    path.write_bytes(len(new).to_bytes(8, "little") + new + raw[8 + size :])


def test_another_format_version_is_a_mismatch_that_names_both(path: Path) -> None:
    save(path, make_block(8))
    rewrite_header(path, {}, {"format": "centroidkv-block-2"})
    with pytest.raises(CacheMismatch, match="centroidkv-block-2") as caught:
        load_block(path)
    assert (caught.value.expected, caught.value.found) == (FORMAT, "centroidkv-block-2")


@pytest.mark.parametrize(
    "keys",
    [
        {"dtype": "F32", "shape": [2, 2, 8, 4], "data_offsets": [0, 1 << 60]},
        {"dtype": "F32", "shape": [2, 2, 8, 4], "data_offsets": [-512, 0]},
        {"dtype": "F32", "shape": [2, 2, 8, 4], "data_offsets": [0.0, 512.0]},
        {"dtype": "F32", "shape": [1 << 40, 1 << 40], "data_offsets": [0, 512]},
        {"dtype": "F32", "shape": [10**30], "data_offsets": [0, 512]},
        {"dtype": "F32", "shape": ["x"], "data_offsets": [0, 512]},
        {"dtype": "F32", "shape": None, "data_offsets": None},
        {},
        [],
        None,
    ],
)
def test_a_header_that_lies_about_its_tensors_is_corrupt(path: Path, keys: object) -> None:
    save(path, make_block(8))
    rewrite_header(path, {"keys": keys}, {})
    with pytest.raises(CacheCorrupt, match=r"block\.safetensors"):
        load_block(path)


@pytest.mark.parametrize(
    "header",
    [b"[]", b"{}", b"null", b'"x"', b"\xff\xfe", b'{"__metadata__":[]}', b"[" * 100_000],
    ids=["list", "empty", "null", "text", "no-utf8", "odd-metadata", "deep"],
)
def test_a_foreign_header_is_a_cache_error(path: Path, header: bytes) -> None:
    path.write_bytes(len(header).to_bytes(8, "little") + header + b"\0" * 64)
    with pytest.raises(CacheError):
        load_block(path)


def test_a_file_of_the_library_itself_is_a_mismatch(path: Path) -> None:
    from safetensors.numpy import save_file

    save_file({"keys": np.zeros(4)}, path, metadata={"format": "pt"})
    with pytest.raises(CacheMismatch):
        load_block(path)


def test_a_header_larger_than_any_is_refused_before_it_is_read(path: Path) -> None:
    path.write_bytes((1 << 40).to_bytes(8, "little") + b"{}")
    with pytest.raises(CacheCorrupt, match="header"):
        load_block(path)


def test_a_missing_file_is_an_os_error(path: Path) -> None:
    with pytest.raises(FileNotFoundError):
        load_block(path)
