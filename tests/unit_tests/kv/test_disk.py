"""The disk tier: sound blocks come back, others cost time, and the budget is obeyed."""

import os
import shutil
import tempfile
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from centroidkv.errors import CacheFull
from centroidkv.kv.blocks import BLOCK_TOKENS, chain, longest_prefix, namespace_id
from centroidkv.kv.codec import load_block
from centroidkv.kv.disk import DiskBlocks
from centroidkv.kv.manifest import PrefixRow
from centroidkv.types import KVBlock
from small_parts import make_block

ROOT = namespace_id("test")
LARGE = 1 << 30


def put(store: DiskBlocks, token_ids: Sequence[int], *, seed: int = 0) -> list[str]:
    """Store a sequence as a request does; return the ids that hold its blocks now."""
    ids = []
    for link in chain(ROOT, token_ids):
        block = make_block(link.stop - link.start, seed=seed)
        own = store.put(link.parent, token_ids[link.start : link.stop], block)
        assert own is not None
        ids.append(own)
    return ids


def assert_sound(store: DiskBlocks) -> None:
    """Rows, files and bytes agree; every block can be reached and read."""
    manifest = store.manifest
    rows = list(manifest.rows())
    assert manifest.faults() == []
    assert {store.path(r.id) for r in rows} == set(store.files())
    assert sum(p.stat().st_size for p in store.files()) == manifest.disk_bytes()
    assert manifest.disk_bytes() <= store.budget_bytes
    for row in rows:
        reached = manifest.chain(row.id)
        assert reached and reached[0].parent == ROOT, "a block without its parent"
        assert all(len(r.token_ids) == BLOCK_TOKENS for r in reached[:-1])
        assert store.verified(row, store.path(row.id)).id == row.id


def is_same(one: KVBlock | None, other: KVBlock) -> bool:
    assert one is not None
    return np.array_equal(one.keys, other.keys) and np.array_equal(one.values, other.values)


@pytest.fixture
def opened(tmp_path: Path) -> Iterator[Callable[..., DiskBlocks]]:
    stores: list[DiskBlocks] = []

    def opening(*, budget_bytes: int = LARGE, read_only: bool = False) -> DiskBlocks:
        store = DiskBlocks(tmp_path / "store", budget_bytes=budget_bytes, read_only=read_only)
        stores.append(store)
        return store

    (tmp_path / "store").mkdir()
    yield opening
    for store in stores:
        store.close()


@pytest.fixture
def store(opened: Callable[..., DiskBlocks]) -> DiskBlocks:
    return opened()


# storing and reading


def test_a_block_survives_closing_and_any_number_of_reads(opened) -> None:
    first = opened()
    ids = put(first, range(100), seed=3)
    first.close()
    second = opened()
    for _ in range(3):
        assert is_same(second.get(ids[0]), make_block(64, seed=3))
        assert is_same(second.get(ids[1]), make_block(36, seed=3))
    assert_sound(second)


def test_an_unknown_block_is_none(store: DiskBlocks) -> None:
    assert store.get(ROOT) is None and not store.has(ROOT)
    assert "damaged_blocks" not in store.manifest.counters()


def test_storing_again_changes_nothing(store: DiskBlocks) -> None:
    ids = put(store, range(100))
    before = store.path(ids[0]).stat().st_mtime_ns
    assert put(store, range(100), seed=1) == ids
    assert store.path(ids[0]).stat().st_mtime_ns == before
    assert is_same(store.get(ids[1]), make_block(36))
    assert_sound(store)


def test_files_are_their_owners_alone(store: DiskBlocks) -> None:
    (own,) = put(store, range(64))
    assert store.path(own).stat().st_mode & 0o777 == 0o600
    assert store.path(own).parent.stat().st_mode & 0o777 == 0o700


# tails


def test_a_tail_is_superseded_when_it_is_extended(store: DiskBlocks) -> None:
    (short,) = put(store, range(10))
    (longer,) = put(store, range(20))
    assert not store.has(short) and not store.path(short).exists()
    full, tail = put(store, range(80))
    assert not store.has(longer) and store.has(full) and store.has(tail)
    assert len(list(store.files())) == 2
    assert_sound(store)


def test_a_shorter_tail_is_answered_by_the_block_that_covers_it(store: DiskBlocks) -> None:
    (longer,) = put(store, range(20))
    assert put(store, range(10)) == [longer]
    assert len(list(store.files())) == 1


def test_tails_that_part_live_side_by_side(store: DiskBlocks) -> None:
    put(store, [1, 2, 3])
    put(store, [1, 2, 4])
    put(store, [1, 2])
    put(store, [1, 2, 3, 5])
    assert sorted(r.token_ids for r in store.manifest.rows()) == [(1, 2, 3, 5), (1, 2, 4)]
    assert_sound(store)


def test_the_prefix_of_a_cluster_follows_its_extended_tail(store: DiskBlocks) -> None:
    _, tail = put(store, range(70))
    store.manifest.set_prefix(PrefixRow("plan", 0, ROOT, "head", tail, 70))
    _, longer = put(store, range(90))
    (prefix,) = store.manifest.prefixes("plan")
    assert (prefix.block, prefix.num_tokens) == (longer, 70)
    assert [r.id for r in store.manifest.chain(prefix.block)] == put(store, range(90))


@given(st.lists(st.lists(st.integers(0, 1), min_size=1, max_size=6), min_size=1, max_size=10))
@settings(max_examples=25, deadline=None)
def test_no_tail_is_stored_that_another_covers(sequences: list[list[int]]) -> None:
    with tempfile.TemporaryDirectory() as folder:
        store = DiskBlocks(Path(folder), budget_bytes=LARGE)
        for tokens in sequences:
            put(store, tokens)
        kept = [r.token_ids for r in store.manifest.rows()]
        assert_sound(store)
        store.close()
    wanted = {tuple(s) for s in sequences}
    assert set(kept) == {s for s in wanted if not any(o != s and o[: len(s)] == s for o in wanted)}


# damage


def damage_flip(path: Path) -> None:
    raw = bytearray(path.read_bytes())
    raw[-5] ^= 1
    path.write_bytes(raw)


def damage_cut(path: Path) -> None:
    os.truncate(path, path.stat().st_size // 2)


def damage_empty(path: Path) -> None:
    path.write_bytes(b"")


def damage_foreign(path: Path) -> None:
    path.write_bytes(b"dear bank, " * 500)


def damage_folder(path: Path) -> None:
    path.unlink()
    path.mkdir()


DAMAGES = [damage_flip, damage_cut, damage_empty, damage_foreign, damage_folder]


@pytest.mark.parametrize("damage", DAMAGES)
def test_a_damaged_file_is_set_aside_counted_and_forgotten(
    store: DiskBlocks, damage: Callable[[Path], None], caplog
) -> None:
    ids = put(store, range(128))
    path = store.path(ids[1])
    damage(path)
    assert store.get(ids[1]) is None
    assert not store.has(ids[1]) and not path.exists()
    assert (store.folder / "quarantine" / path.name).exists()
    assert store.manifest.counters()["damaged_blocks"] == 1
    assert "block ignored" in caplog.text
    assert is_same(store.get(ids[0]), make_block(64))
    assert_sound(store)


@pytest.mark.parametrize("place", [0, 7, 8, 20, 200, 600, 1000, 1500, 2000, -1])
def test_a_flipped_byte_anywhere_is_noticed(store: DiskBlocks, place: int) -> None:
    (own,) = put(store, range(64))
    raw = bytearray(store.path(own).read_bytes())
    raw[place] ^= 0xFF
    store.path(own).write_bytes(raw)
    assert store.get(own) is None and not store.has(own)
    assert list((store.folder / "quarantine").iterdir())


def test_a_damaged_file_that_cannot_be_set_aside_is_no_error(store: DiskBlocks) -> None:
    own = store.put(ROOT, range(64), make_block(64))
    assert own is not None
    store.path(own).write_bytes(b"")
    (store.folder / "quarantine").write_bytes(b"a file is in the way")
    assert store.get(own) is None and not store.has(own)


def test_a_damaged_block_can_be_stored_again(store: DiskBlocks) -> None:
    ids = put(store, range(200))
    damage_flip(store.path(ids[1]))
    assert store.get(ids[1]) is None
    assert longest_prefix(store, ROOT, range(200)).num_tokens == 64
    assert put(store, range(200)) == ids
    assert longest_prefix(store, ROOT, range(200)).num_tokens == 199
    assert_sound(store)


def test_a_missing_file_is_forgotten(store: DiskBlocks) -> None:
    (own,) = put(store, range(64))
    store.path(own).unlink()
    assert store.get(own) is None and not store.has(own)
    assert store.manifest.disk_bytes() == 0


def test_files_swapped_with_one_another_are_noticed(store: DiskBlocks, tmp_path: Path) -> None:
    (one,), (two,) = put(store, [1] * 64, seed=1), put(store, [2] * 64, seed=2)
    os.replace(store.path(one), tmp_path / "held")
    os.replace(store.path(two), store.path(one))
    os.replace(tmp_path / "held", store.path(two))
    assert store.get(one) is None and store.get(two) is None
    assert not store.has(one) and not store.has(two)
    assert len(list((store.folder / "quarantine").iterdir())) == 2
    assert_sound(store)


def test_a_file_of_another_namespace_is_noticed(tmp_path: Path) -> None:
    stores = []
    for name in ("one", "two"):
        (tmp_path / name).mkdir()
        stores.append(DiskBlocks(tmp_path / name, budget_bytes=LARGE))
    one, two = stores
    own = one.put(ROOT, range(64), make_block(64))
    other = two.put(namespace_id("other"), range(64), make_block(64, seed=1))
    assert own and other
    shutil.copy(two.path(other), one.path(own))
    assert one.get(own) is None and not one.has(own)
    for store in stores:
        store.close()


def test_a_dropped_block_keeps_its_file_in_quarantine(store: DiskBlocks) -> None:
    (own,) = put(store, range(64))
    store.drop(own)
    assert not store.has(own) and not store.path(own).exists()
    assert load_block(store.folder / "quarantine" / store.path(own).name).id == own
    store.drop(own)


# budgets


@pytest.mark.parametrize("length", [64, 100, 300])
def test_the_budget_holds_while_many_times_as_much_is_stored(opened, length: int) -> None:
    store = opened(budget_bytes=60_000)
    written = 0
    for i in range(30):
        tokens = [i, *range(1, length)]
        put(store, tokens)
        written += length * make_block(1).num_bytes
        assert longest_prefix(store, ROOT, [*tokens, 0]).num_tokens == length
        assert store.manifest.disk_bytes() <= store.budget_bytes
    assert written > 4 * store.budget_bytes
    assert store.manifest.counters()["evicted_blocks"] > 0
    assert store.manifest.disk_bytes() > store.budget_bytes // 2, "evicted more than needed"
    assert_sound(store)


def test_what_was_used_last_stays_longest(opened) -> None:
    store = opened(budget_bytes=40_000)
    dear = put(store, [99] * 64)
    for i in range(20):
        put(store, [i] * 64)
        store.manifest.touch(dear)
    assert store.has(dear[0]) and is_same(store.get(dear[0]), make_block(64))


def test_leased_blocks_and_what_leads_to_them_stay(opened) -> None:
    store = opened(budget_bytes=60_000)
    leased = put(store, range(192))
    with store.leases.hold(leased[-1:]):
        for i in range(20):
            put(store, [i + 500] * 128)
            assert all(is_same(store.get(b), make_block(64)) for b in leased)
    for i in range(20):
        put(store, [i + 900] * 128)
    assert not any(store.has(b) for b in leased)
    assert_sound(store)


def test_a_store_full_of_leased_blocks_says_so(opened) -> None:
    store = opened(budget_bytes=20_000)
    leased = put(store, range(64))
    with (
        store.leases.hold(leased),
        pytest.raises(CacheFull, match=r"20,000 bytes.*disk_budget_bytes"),
    ):
        for i in range(5):
            with store.leases.hold(put(store, [i + 100] * 64)):
                store.put(leased[0], [i] * 64, make_block(640))
    assert store.has(leased[0])
    assert store.manifest.disk_bytes() <= store.budget_bytes


def test_a_block_larger_than_the_budget_is_refused(opened) -> None:
    store = opened(budget_bytes=1000)
    with pytest.raises(CacheFull) as caught:
        store.put(ROOT, range(64), make_block(64))
    assert caught.value.budget_bytes == 1000
    assert list(store.files()) == [] and store.manifest.disk_bytes() == 0


def test_a_block_too_large_for_the_budget_costs_no_other_block(opened) -> None:
    store = opened(budget_bytes=20_000)
    (own,) = put(store, range(64))
    with pytest.raises(CacheFull):
        store.put(ROOT, [7] * 64, make_block(640))
    assert store.has(own), "everything was evicted for a block that fits nowhere"


def test_a_smaller_budget_is_reached_by_the_next_write(opened) -> None:
    first = opened()
    for i in range(10):
        put(first, [i] * 64)
    first.close()
    second = opened(budget_bytes=30_000)
    put(second, [77] * 64)
    assert_sound(second)


def test_a_block_whose_parent_is_gone_is_not_kept_where_it_cannot_be_found(
    store: DiskBlocks,
) -> None:
    """Memory may still hold a parent that disk has evicted; its child comes behind it."""
    full, _ = put(store, range(100))
    store.manifest.remove([r.id for r in store.manifest.rows()])
    for path in store.files():
        path.unlink()
    store.put(full, range(64, 100), make_block(36))
    assert all(r.namespace == ROOT for r in store.manifest.rows())
    put(store, range(64))
    assert_sound(store)


# the manifest can be made again


def fill(store: DiskBlocks) -> set[str]:
    put(store, range(200))
    put(store, [5] * 70)
    return {r.id for r in store.manifest.rows()}


def manifest_files(store: DiskBlocks) -> list[Path]:
    return sorted(store.folder.glob("manifest.sqlite*"))


def test_a_deleted_manifest_is_rebuilt_from_the_files(opened) -> None:
    first = opened()
    ids = fill(first)
    rows = {r.id: r for r in first.manifest.rows()}
    first.close()
    for path in manifest_files(first):
        path.unlink()
    second = opened()
    assert {r.id: r for r in second.manifest.rows()} == rows
    assert all(second.get(b) is not None for b in ids)
    assert_sound(second)


@pytest.mark.parametrize("garbage", [b"", b"garbage" * 1000, b"SQLite format 3\0" + b"\xff" * 4096])
def test_an_overwritten_manifest_is_rebuilt_from_the_files(opened, garbage: bytes) -> None:
    first = opened()
    ids = fill(first)
    first.close()
    (first.folder / "manifest.sqlite").write_bytes(garbage)
    second = opened()
    assert {r.id for r in second.manifest.rows()} == ids
    assert all(second.get(b) is not None for b in ids)
    put(second, [9] * 64)
    assert_sound(second)


@pytest.mark.parametrize("share", [0.1, 0.5, 0.9])
def test_a_truncated_manifest_is_rebuilt_from_the_files(opened, share: float) -> None:
    first = opened()
    ids = fill(first)
    first.close()
    path = first.folder / "manifest.sqlite"
    os.truncate(path, int(path.stat().st_size * share))
    second = opened()
    assert {r.id for r in second.manifest.rows()} == ids
    assert_sound(second)


@pytest.mark.parametrize("place", [0, 16, 18, 19, 20, 21, 28, 44, 47, 56, 100, 105, 4096, 4100])
def test_a_flipped_byte_in_the_manifest_never_keeps_the_store_from_opening(
    opened, place: int
) -> None:
    first = opened()
    ids = fill(first)
    first.close()
    path = first.folder / "manifest.sqlite"
    raw = bytearray(path.read_bytes())
    raw[place] ^= 0xFF
    path.write_bytes(raw)
    second = opened()
    assert {r.id for r in second.manifest.rows()} == ids
    put(second, [9] * 64)
    assert_sound(second)


def test_a_manifest_with_other_tables_is_rebuilt_from_the_files(opened) -> None:
    import sqlite3

    first = opened()
    ids = fill(first)
    first.close()
    path = first.folder / "manifest.sqlite"
    for file in manifest_files(first):
        file.unlink()
    with sqlite3.connect(path) as db:
        db.execute("CREATE TABLE blocks (a, b)")
    db.close()
    second = opened()
    assert {r.id for r in second.manifest.rows()} == ids


def test_damaged_files_are_left_out_of_a_rebuilt_manifest(opened) -> None:
    first = opened()
    ids = put(first, range(64)) + put(first, [3] * 64)
    first.close()
    damage_cut(first.path(ids[0]))
    (first.folder / "manifest.sqlite").write_bytes(b"garbage")
    second = opened()
    assert not second.has(ids[0]) and second.has(ids[1])
    assert second.manifest.counters()["damaged_blocks"] == 1
    assert_sound(second)


def test_a_file_under_another_name_is_left_out_of_a_rebuilt_manifest(opened) -> None:
    first = opened()
    (own,) = put(first, range(64))
    first.close()
    stray = first.path("ff" * 32)
    stray.parent.mkdir(exist_ok=True)
    shutil.copy(first.path(own), stray)
    (first.folder / "manifest.sqlite").write_bytes(b"garbage")
    second = opened()
    assert is_same(second.get(own), make_block(64))
    assert_sound(second)


def test_a_manifest_that_was_not_closed_is_read_as_it_stood(opened, tmp_path: Path) -> None:
    """What a killed process leaves behind: the files, with the log not folded in."""
    first = opened()
    ids = fill(first)
    shutil.copytree(first.folder, tmp_path / "copy")
    second = DiskBlocks(tmp_path / "copy", budget_bytes=LARGE)
    assert {r.id for r in second.manifest.rows()} == ids
    assert_sound(second)
    second.close()


# reading only


def snapshot(folder: Path) -> dict[Path, bytes]:
    """All files but those that SQLite itself lays down to share a log with a writer."""
    own = [p for p in sorted(folder.rglob("*")) if not p.name.endswith(("-wal", "-shm"))]
    return {p: p.read_bytes() for p in own if p.is_file()}


def test_a_read_only_store_serves_and_changes_nothing(opened) -> None:
    first = opened()
    ids = put(first, range(130))
    first.close()
    before = snapshot(first.folder)
    reader = opened(read_only=True)
    assert all(reader.get(b) is not None for b in ids)
    assert longest_prefix(reader, ROOT, range(130)).num_tokens == 129
    assert snapshot(first.folder) == before


@pytest.mark.parametrize("damage", DAMAGES)
def test_a_read_only_store_leaves_damage_where_it_is(opened, damage) -> None:
    first = opened()
    (own,) = put(first, range(64))
    first.close()
    damage(first.path(own))
    before = snapshot(first.folder)
    reader = opened(read_only=True)
    assert reader.get(own) is None
    assert snapshot(first.folder) == before


def test_a_read_only_store_leaves_a_damaged_manifest_where_it_is(opened) -> None:
    first = opened()
    (own,) = put(first, range(64))
    first.close()
    (first.folder / "manifest.sqlite").write_bytes(b"garbage" * 1000)
    before = snapshot(first.folder)
    reader = opened(read_only=True)
    assert reader.get(own) is None or is_same(reader.get(own), make_block(64))
    assert snapshot(first.folder) == before


def test_a_store_can_be_read_only_while_another_writes(opened) -> None:
    writer = opened()
    (own,) = put(writer, range(64))
    reader = opened(read_only=True)
    assert is_same(reader.get(own), make_block(64))


# two stores on one folder


def test_two_open_stores_share_blocks_and_budget(opened) -> None:
    one, two = opened(budget_bytes=60_000), opened(budget_bytes=60_000)
    for i in range(15):
        put(one, [i] * 100)
        put(two, [i + 100] * 100)
        put(two, [i] * 100)
    assert_sound(one)
    assert_sound(two)


def test_a_block_that_another_process_evicted_is_none(opened) -> None:
    one, two = opened(), opened()
    (own,) = put(one, range(64))
    two.manifest.remove([own])
    two.path(own).unlink()
    assert one.get(own) is None
