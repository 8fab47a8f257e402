"""Memory above disk, as one store."""

import threading
from pathlib import Path

import numpy as np
import pytest

from centroidkv.errors import CacheFull
from centroidkv.kv.blocks import chain, namespace_id
from centroidkv.kv.disk import DiskBlocks
from centroidkv.kv.memory import MemoryBlocks
from centroidkv.kv.tiers import Piece, TieredBlocks
from small_parts import make_block

ROOT = namespace_id("test")
BLOCK_BYTES = make_block(64).num_bytes


def pieces(token_ids, *, seed: int = 0) -> list[Piece]:
    return [
        Piece(
            link.parent,
            tuple(token_ids[link.start : link.stop]),
            make_block(link.stop - link.start, seed=seed),
        )
        for link in chain(ROOT, token_ids)
    ]


def ids(token_ids) -> list[str]:
    return [link.id for link in chain(ROOT, token_ids)]


@pytest.fixture
def opened(tmp_path: Path):
    stores = []

    def opening(*, memory: int = 1 << 20, disk: int = 1 << 24, read_only: bool = False):
        tier = DiskBlocks(tmp_path, budget_bytes=disk, read_only=read_only)
        stores.append(tier)
        return TieredBlocks(MemoryBlocks(budget_bytes=memory), tier)

    yield opening
    for store in stores:
        store.close()


def test_new_blocks_are_found_before_they_are_on_disk(opened) -> None:
    blocks = opened()
    blocks.keep(pieces(range(100)))
    assert blocks.match(ROOT, range(100)).num_tokens == 99
    assert blocks.disk.manifest.num_blocks() == 0


def test_blocks_on_disk_come_into_memory_when_they_are_read(opened) -> None:
    blocks = opened()
    last = blocks.persist(pieces(range(100)))
    assert last == ids(range(100))[-1] and len(blocks.memory) == 0
    found = blocks.get(last)
    assert found is not None and np.array_equal(found.keys, make_block(36).keys)
    assert blocks.memory.has(last)
    assert blocks.get(last) is blocks.memory.get(last)


def test_a_match_may_begin_in_memory_and_end_on_disk(opened) -> None:
    blocks = opened()
    made = pieces(range(200))
    blocks.keep(made)
    blocks.persist(made)
    for own in ids(range(200))[2:]:
        blocks.memory.delete(own)
    match = blocks.match(ROOT, range(200))
    assert match.num_tokens == 199
    assert all(blocks.get(s.id) is not None for s in match.steps)


def test_the_longer_of_two_tails_is_taken_whichever_tier_has_it(opened) -> None:
    blocks = opened()
    blocks.keep(pieces(range(10)))
    blocks.persist(pieces(range(20)))
    assert blocks.match(ROOT, range(50)).num_tokens == 20
    blocks.keep(pieces(range(30)))
    assert blocks.match(ROOT, range(50)).num_tokens == 30


def test_an_unknown_block_is_none(opened) -> None:
    blocks = opened()
    assert not blocks.has(ROOT) and blocks.get(ROOT) is None
    assert blocks.match(ROOT, range(5)).num_tokens == 0


def test_a_damaged_block_is_none_and_does_not_come_into_memory(opened) -> None:
    blocks = opened()
    last = blocks.persist(pieces(range(64)))
    blocks.disk.path(last).write_bytes(b"foreign")
    assert blocks.get(last) is None
    assert len(blocks.memory) == 0 and not blocks.has(last)


def test_a_block_too_large_for_memory_is_served_from_disk(opened) -> None:
    blocks = opened(memory=10)
    last = blocks.persist(pieces(range(64)))
    assert blocks.get(last) is not None and len(blocks.memory) == 0


def test_prefetching_brings_a_whole_chain_into_memory(opened) -> None:
    blocks = opened()
    last = blocks.persist(pieces(range(200)))
    blocks.prefetch(last)
    assert all(blocks.memory.has(b) for b in ids(range(200)))


def test_prefetching_takes_the_first_blocks_where_memory_is_short(opened) -> None:
    blocks = opened(memory=3 * BLOCK_BYTES)
    last = blocks.persist(pieces(range(640)))
    blocks.prefetch(last)
    held = [blocks.memory.has(b) for b in ids(range(640))]
    assert 1 <= sum(held) <= 3
    assert held == sorted(held, reverse=True), "a later block displaced an earlier one"


def test_prefetching_what_is_gone_does_nothing(opened) -> None:
    blocks = opened()
    blocks.prefetch(ROOT)
    assert len(blocks.memory) == 0


def test_persisting_tells_the_block_that_ends_the_sequence(opened) -> None:
    blocks = opened()
    longer = blocks.persist(pieces(range(80)))
    assert blocks.persist(pieces(range(70))) == longer
    assert blocks.persist([]) is None


def test_persisting_beyond_the_budget_is_a_full_cache(opened) -> None:
    with pytest.raises(CacheFull):
        opened(disk=100).persist(pieces(range(64)))


def test_what_disk_evicted_and_memory_still_holds_does_not_break_the_chain(opened) -> None:
    """A follow-up reuses blocks from memory; only its new blocks are written."""
    blocks = opened()
    made = pieces(range(192))
    blocks.keep(made)
    blocks.persist(made[:1])
    blocks.persist(made[2:])
    blocks.persist(made)
    rows = blocks.disk.manifest.chain(ids(range(192))[-1])
    assert [r.id for r in rows] == ids(range(192))
    assert {r.namespace for r in blocks.disk.manifest.rows()} == {ROOT}


def test_touched_blocks_are_evicted_last(opened) -> None:
    blocks = opened()
    one, two = blocks.persist(pieces([1] * 64)), blocks.persist(pieces([2] * 64))
    blocks.touch([one])
    assert [b for b, _ in blocks.disk.manifest.leaves(2)] == [two, one]
    blocks.touch([])


def test_a_read_only_store_takes_nothing_onto_disk(opened) -> None:
    blocks = opened()
    last = blocks.persist(pieces(range(64)))
    blocks.disk.close()
    reader = opened(read_only=True)
    assert reader.persist(pieces([7] * 64)) is None
    reader.touch([last])
    reader.keep(pieces([7] * 64))
    assert reader.match(ROOT, [7] * 64).num_tokens == 63
    assert reader.get(last) is not None
    assert len(list(reader.disk.files())) == 1


@pytest.mark.parametrize("memory", [0, 2 * BLOCK_BYTES, 1 << 20])
def test_blocks_come_in_turn_whether_or_not_they_are_in_memory(opened, memory: int) -> None:
    blocks = opened(memory=memory)
    wanted = pieces(range(300))
    blocks.keep(wanted[:2])
    blocks.persist(wanted)
    for _ in range(2):
        got = list(blocks.in_turn(ids(range(300))))
        assert [g.num_tokens for g in got] == [64, 64, 64, 64, 44]
        for piece, found in zip(wanted, got, strict=True):
            assert np.array_equal(found.keys, piece.block.keys)


def test_a_missing_block_is_none_in_its_turn(opened) -> None:
    blocks = opened(memory=0)
    blocks.persist(pieces(range(300)))
    names = ids(range(300))
    blocks.disk.path(names[2]).unlink()
    assert [b is None for b in blocks.in_turn(names)] == [False, False, True, False, False]


def test_reading_ahead_ends_with_its_reader(opened) -> None:
    blocks = opened(memory=0)
    blocks.persist(pieces(range(300)))
    reading = blocks.in_turn(ids(range(300)))
    assert next(reading) is not None
    reading.close()
    names = [t.name for t in threading.enumerate()]
    assert not any(n.startswith("centroidkv-read") for n in names)
