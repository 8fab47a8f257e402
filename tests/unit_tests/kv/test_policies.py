"""Policies order what leaves, alike on disk and in memory; pins and old manifests."""

import itertools
import sqlite3
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from centroidkv.kv.blocks import block_id, chain, namespace_id, pack
from centroidkv.kv.disk import DiskBlocks
from centroidkv.kv.eviction import Leases, leaves_to_evict
from centroidkv.kv.manifest import BlockRow, Manifest, PrefixRow
from centroidkv.kv.memory import MemoryBlocks
from centroidkv.kv.policies import POLICIES, worth
from small_parts import make_block

ROOT = namespace_id("test")
SIZE = make_block(64).num_bytes


def tokens(number: int) -> tuple[int, ...]:
    return (number,) * 64


def own(number: int) -> str:
    return block_id(ROOT, tokens(number))


@pytest.mark.parametrize("policy", POLICIES)
@settings(max_examples=25, deadline=None)
@given(uses=st.lists(st.integers(0, 5), max_size=30))
def test_disk_and_memory_let_the_same_block_go_first(policy: str, uses: list[int]) -> None:
    disk = Manifest(Path(":memory:"), policy=policy)
    memory = MemoryBlocks(budget_bytes=6 * SIZE, policy=policy)
    for number in range(6):
        disk.add(BlockRow(own(number), ROOT, ROOT, tokens(number), SIZE))
        memory.put(ROOT, tokens(number), make_block(64))
    for number in uses:
        disk.touch([own(number)])
        memory.get(own(number))
    first = leaves_to_evict(disk, 1, Leases())
    memory.put(ROOT, tokens(6), make_block(64))
    gone = [own(n) for n in range(7) if not memory.has(own(n))]
    # The new block itself may be the least used of all: that is what frequency means.
    assert gone in (first, [own(6)]) and memory.num_bytes <= memory.budget_bytes
    disk.close()


def test_what_was_used_much_long_ago_gives_way_in_the_end() -> None:
    memory = MemoryBlocks(budget_bytes=4 * SIZE, policy="cost")
    memory.put(ROOT, tokens(0), make_block(64))
    for _ in range(10):
        memory.get(own(0))
    gone = next(
        (n for n in range(1, 200) if not memory.put(ROOT, tokens(n), make_block(64))
         or not memory.has(own(0))), None)  # fmt: skip
    assert gone is not None and gone > 10


def test_worth_grows_with_use_and_depth_and_falls_with_size() -> None:
    plain = worth(age=1, uses=1, depth_tokens=0, tokens_per_byte=0.01)
    assert worth(age=1, uses=2, depth_tokens=0, tokens_per_byte=0.01) > plain
    assert worth(age=1, uses=1, depth_tokens=640, tokens_per_byte=0.01) > plain
    assert worth(age=1, uses=1, depth_tokens=0, tokens_per_byte=0.005) < plain


def put(disk: DiskBlocks, token_ids: tuple[int, ...]) -> str:
    last = None
    for link in chain(ROOT, token_ids):
        block = make_block(link.stop - link.start)
        last = disk.put(link.parent, token_ids[link.start : link.stop], block)
    assert last is not None
    return last


@pytest.mark.parametrize("policy", POLICIES)
def test_a_pinned_cluster_outlives_twenty_times_the_budget(tmp_path: Path, policy: str) -> None:
    budget = 12 * (SIZE + 4096)
    disk = DiskBlocks(tmp_path, budget_bytes=budget, policy=policy)
    pinned = put(disk, tuple(range(256)))
    disk.manifest.set_prefix(PrefixRow("plan", 3, ROOT, "head", pinned, 256))
    disk.manifest.pin("plan", 3, in_memory=False)
    written = 0
    for start in itertools.count(1000, 1000):
        put(disk, tuple(range(start, start + 192)))
        written += 3 * SIZE
        files = list(disk.files())
        assert sum(p.stat().st_size for p in files) == disk.manifest.disk_bytes() <= budget
        if written > 20 * budget:
            break
    rows = disk.manifest.chain(pinned)
    assert [r.token_ids[0] for r in rows] == [0, 64, 128, 192]
    for row in disk.manifest.rows():
        assert disk.verified(row, disk.path(row.id)).id == row.id
        assert disk.manifest.chain(row.id), "a block without its parent"
    disk.manifest.unpin("plan", 3)
    for start in range(500_000, 560_000, 1000):
        put(disk, tuple(range(start, start + 192)))
    assert policy == "cost" or not disk.has(pinned)
    disk.close()


def old_manifest(path: Path) -> list[str]:
    """Write a manifest as the version before use counts did; return the ids of a chain."""
    db = sqlite3.connect(path)
    db.executescript(
        """CREATE TABLE blocks (
        id TEXT PRIMARY KEY, parent TEXT NOT NULL, namespace TEXT NOT NULL, tokens BLOB NOT NULL,
        is_full INTEGER NOT NULL, num_bytes INTEGER NOT NULL, last_used INTEGER NOT NULL
        ) WITHOUT ROWID;
        CREATE TABLE prefixes (plan TEXT NOT NULL, cluster INTEGER NOT NULL,
        namespace TEXT NOT NULL, head TEXT NOT NULL, block TEXT NOT NULL,
        num_tokens INTEGER NOT NULL, PRIMARY KEY (plan, cluster, namespace, head)) WITHOUT ROWID;
        CREATE TABLE counters (name TEXT PRIMARY KEY, value INTEGER NOT NULL) WITHOUT ROWID;
        INSERT INTO counters VALUES ('disk_bytes', 50);
        PRAGMA user_version = 1;"""
    )
    links = chain(ROOT, tuple(range(300)))
    for number, link in enumerate(links[::-1]):
        part = tuple(range(link.start, link.stop))
        row = (link.id, link.parent, ROOT, pack(part), len(part) == 64, 10, number)
        db.execute("INSERT INTO blocks VALUES (?, ?, ?, ?, ?, ?, ?)", row)
    db.commit()
    db.close()
    return [link.id for link in links]


@pytest.mark.parametrize("read_only", [True, False])
def test_the_manifest_of_an_earlier_version_is_read_and_brought_up(
    tmp_path: Path, read_only: bool
) -> None:
    path = tmp_path / "manifest.sqlite"
    ids = old_manifest(path)
    before = path.read_bytes()
    manifest = Manifest(path, policy="cost", read_only=read_only)
    assert [r.id for r in manifest.chain(ids[-1])] == ids
    assert {r.level for r in manifest.rows()} == {"raw"} and manifest.pins() == []
    if not read_only:
        assert [b for b, _ in manifest.leaves(9)] == [ids[-1]]
        assert [r.id for r in manifest.owed(9)] == ids[:-1], "near the start first"
        manifest.touch(ids)
        assert manifest.disk_bytes() == 50
    manifest.close()
    assert not read_only or path.read_bytes() == before
    Manifest(path).close()
