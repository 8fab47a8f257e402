"""Coded blocks on their way through disk and remote: what a name says is what is there."""

from collections.abc import Callable, Iterator
from pathlib import Path

import fsspec
import numpy as np
import pytest

from centroidkv.errors import CacheCorrupt
from centroidkv.kv.blocks import Piece, chain, namespace_id
from centroidkv.kv.codec import BlockCoder, block_bytes, load_block, parse_block
from centroidkv.kv.disk import DiskBlocks
from centroidkv.kv.memory import MemoryBlocks
from centroidkv.kv.remote_opening import open_remote
from centroidkv.kv.tiers import TieredBlocks
from centroidkv.remote_settings import RemoteSettings
from centroidkv.types import KVBlock
from small_parts import make_block

ROOT = namespace_id("coded")
TOKENS = tuple(range(600))
Machine = Callable[..., TieredBlocks]


@pytest.fixture
def machine(tmp_path: Path) -> Iterator[Machine]:
    """Open the tiers of one machine that keeps KV at some levels; all share one remote."""
    opened: list[TieredBlocks] = []

    def opening(name: str, *levels: str) -> TieredBlocks:
        folder = tmp_path / name
        folder.mkdir(exist_ok=True)
        disk = DiskBlocks(folder, budget_bytes=1 << 24)
        settings = RemoteSettings("memory://coded", min_tokens=64)
        remote = open_remote(settings, count=print, standing=disk.manifest.standing)
        blocks = TieredBlocks(MemoryBlocks(budget_bytes=1 << 24), disk, remote)
        coders = tuple(map(BlockCoder, levels))
        assert blocks.uploads is not None
        disk.coders[ROOT], blocks.uploads.coders[ROOT] = coders[0], coders
        opened.append(blocks)
        return blocks

    yield opening
    for blocks in opened:
        blocks.disk.close()
    fsspec.filesystem("memory").rm("/coded", recursive=True)


def pieces(token_ids: tuple[int, ...] = TOKENS, *, uncodable: int | None = None) -> list[Piece]:
    found = []
    for link in chain(ROOT, token_ids):
        block = make_block(link.stop - link.start, seed=link.start)
        if link.start == uncodable:
            block.keys[0, 0, 0, 0] = np.inf
        found.append(Piece(link.parent, token_ids[link.start : link.stop], block))
    return found


def entries() -> list[str]:
    return [path.rsplit("/", 1)[-1] for path in fsspec.filesystem("memory").find("/coded")]


@pytest.mark.parametrize("levels", [("q8",), ("q8", "q4")])
def test_a_block_that_no_level_holds_is_raw_and_found_all_the_same(
    machine: Machine, levels: tuple[str, ...]
) -> None:
    one, two = machine("one", *levels), machine("two", *levels)
    one.persist(pieces(uncodable=128))
    ids = [k.id for k in chain(ROOT, TOKENS)][:9]
    assert {one.disk.manifest.get(b).level: load_block(one.disk.path(b)).level for b in ids} == {
        "raw": "raw",
        "q8": "q8",
    }
    assert two.match(ROOT, TOKENS).num_tokens == 576
    assert all(two.fetch(block, level) is not None for block in ids for level in levels)
    assert all(two.disk.has(block) for block in ids), "none waits for one that never comes"


def test_only_full_blocks_go_to_the_remote_and_none_twice(machine: Machine) -> None:
    one = machine("one", "q8", "q4")
    one.persist(pieces(TOKENS[:100]))
    own = chain(ROOT, TOKENS)[0].id
    assert sorted(entries()) == [f"{own}.q4", f"{own}.q8"]
    # The first tokens of a block that is there: it covers them, and they are not all of it.
    fsspec.filesystem("memory").rm(f"/coded/{own[:2]}/{own}.q4")
    one.persist(pieces(TOKENS[:40]))
    assert entries() == [f"{own}.q8"]
    one.disk.manifest._db.execute("UPDATE blocks SET in_remote = 0")
    one.persist(pieces(TOKENS[:40]))
    for name in entries():
        raw = fsspec.filesystem("memory").cat_file(f"/coded/{name[:2]}/{name}")
        assert parse_block(raw, name).block.num_tokens == 64


def test_what_comes_at_another_level_does_not_wait_for_the_disk(machine: Machine) -> None:
    one, two = machine("one", "q8", "q4"), machine("two", "q8", "q4")
    one.persist(pieces())
    match = two.match(ROOT, TOKENS)
    assert all(two.fetch(step.id, "q4") is not None for step in match.steps)
    assert not two.promotion._waiting and two.disk.manifest.num_blocks() == 0


def test_a_file_of_other_tokens_than_it_has_kv_for_is_refused() -> None:
    ids = ("a" * 64, "b" * 64, "c" * 64)
    block = make_block(3)
    uneven = KVBlock(block.keys, block.values[:, :, :2], block.dtype)
    for coder in (BlockCoder("raw"), BlockCoder("q8")):
        with pytest.raises(CacheCorrupt):
            parse_block(block_bytes(block, ids=ids, token_ids=range(5), coder=coder), "x")
    with pytest.raises(CacheCorrupt):
        parse_block(block_bytes(uneven, ids=ids, token_ids=range(3)), "x")
