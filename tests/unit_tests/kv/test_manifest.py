"""The manifest: which blocks there are, what continues what, who goes first."""

import sqlite3
import tempfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from centroidkv.kv.blocks import block_id, chain, namespace_id
from centroidkv.kv.manifest import BlockRow, Manifest, PrefixRow
from centroidkv.types import common_prefix

ROOT = namespace_id("test")


@pytest.fixture
def manifest(tmp_path: Path):
    manifest = Manifest(tmp_path / "manifest.sqlite")
    yield manifest
    assert manifest.faults() == []
    manifest.close()


def row(tokens, *, parent: str = ROOT, num_bytes: int = 100, namespace: str = ROOT) -> BlockRow:
    return BlockRow(block_id(parent, tokens), parent, namespace, tuple(tokens), num_bytes)


def add_sequence(manifest: Manifest, num_tokens: int, *, first: int = 0) -> list[str]:
    tokens = [first, *range(1, num_tokens)]
    links = chain(ROOT, tokens)
    for link in links:
        manifest.add(row(tokens[link.start : link.stop], parent=link.parent))
    return [link.id for link in links]


def test_a_row_comes_back_as_it_was_added(manifest: Manifest) -> None:
    added = row((1, 2**32 - 1, 3), num_bytes=7)
    manifest.add(added)
    assert manifest.get(added.id) == added
    assert manifest.has(added.id) and list(manifest.rows()) == [added]


def test_an_unknown_block_is_none(manifest: Manifest) -> None:
    assert manifest.get(ROOT) is None and not manifest.has(ROOT)
    assert manifest.chain(ROOT) == [] and manifest.neighbours(ROOT, (1,)) == []
    assert manifest.is_empty(ROOT) and manifest.num_blocks() == 0


def test_bytes_follow_what_is_added_and_removed(manifest: Manifest) -> None:
    assert manifest.disk_bytes() == 0
    one, two = row((1,), num_bytes=10), row((2,), num_bytes=5)
    for added in (one, two, one):
        manifest.add(added)
    assert manifest.disk_bytes() == 15
    manifest.remove([one.id, one.id, "unknown"])
    assert (manifest.disk_bytes(), manifest.num_blocks()) == (5, 1)
    manifest.replace_tail(two.id, "new")
    assert manifest.disk_bytes() == 0


@given(
    st.lists(st.lists(st.integers(0, 2), min_size=1, max_size=5), max_size=10),
    st.lists(st.integers(0, 2), max_size=5),
)
@settings(max_examples=50, deadline=None)
def test_one_of_the_neighbours_shares_the_longest_prefix(children, wanted) -> None:
    with tempfile.TemporaryDirectory() as folder:
        manifest = Manifest(Path(folder) / "manifest.sqlite")
        for child in children:
            manifest.add(row(child))
        found = manifest.neighbours(ROOT, wanted)
        manifest.close()
    best = max((common_prefix(tokens, wanted) for _, tokens in found), default=0)
    assert best == max((common_prefix(c, wanted) for c in children), default=0)
    assert len(found) <= 2


def test_only_blocks_without_children_are_leaves(manifest: Manifest) -> None:
    first = add_sequence(manifest, 130)
    other = add_sequence(manifest, 10, first=7)
    assert [b for b, _ in manifest.leaves(10)] == [first[-1], other[-1]]
    manifest.remove([first[-1]])
    assert {b for b, _ in manifest.leaves(10)} == {first[-2], other[-1]}


def test_the_least_recently_used_leaf_comes_first(manifest: Manifest) -> None:
    one, two, three = (row((i,), num_bytes=i) for i in (1, 2, 3))
    for added in (one, two, three):
        manifest.add(added)
    manifest.touch([one.id])
    assert manifest.leaves(10) == [(two.id, 2), (three.id, 3), (one.id, 1)]
    assert manifest.leaves(1) == [(two.id, 2)]


def test_recency_goes_on_after_reopening(tmp_path: Path) -> None:
    path = tmp_path / "manifest.sqlite"
    first = Manifest(path)
    for i in (1, 2):
        first.add(row((i,)))
    first.touch([row((1,)).id])
    first.close()
    second = Manifest(path)
    second.add(row((3,)))
    assert [b for b, _ in second.leaves(3)] == [row((i,)).id for i in (2, 1, 3)]
    second.close()


def test_a_chain_leads_from_the_first_block_to_the_last(manifest: Manifest) -> None:
    ids = add_sequence(manifest, 200)
    assert [r.id for r in manifest.chain(ids[-1])] == ids
    assert [r.id for r in manifest.chain(ids[1])] == ids[:2]
    manifest.remove([ids[1]])
    assert manifest.chain(ids[-1]) == []


def test_namespaces_are_counted_apart(manifest: Manifest) -> None:
    other = namespace_id("other")
    manifest.add(row((1,)))
    manifest.add(row((1,), parent=other, namespace=other))
    assert (manifest.num_blocks(), manifest.num_blocks(ROOT), manifest.num_blocks(other)) == (
        2,
        1,
        1,
    )
    assert manifest.neighbours(other, (1,)) == [(block_id(other, (1,)), (1,))]
    assert not manifest.is_empty(ROOT) and manifest.is_empty(namespace_id("third"))


def test_many_rows_are_added_at_once_and_only_once(manifest: Manifest) -> None:
    assert manifest.is_empty()
    rows = [row((number,)) for number in range(50)]
    manifest.add(*rows)
    manifest.add(*rows)
    assert (manifest.num_blocks(), manifest.disk_bytes()) == (50, 5000)
    assert not manifest.is_empty()


def test_a_prefix_follows_the_block_that_supersedes_its_tail(manifest: Manifest) -> None:
    tail, longer = row((1, 2)), row((1, 2, 3))
    manifest.add(tail)
    manifest.set_prefix(PrefixRow("plan", 0, ROOT, "head", tail.id, 2))
    manifest.add(longer)
    manifest.replace_tail(tail.id, longer.id)
    assert manifest.prefixes("plan") == [PrefixRow("plan", 0, ROOT, "head", longer.id, 2)]
    assert not manifest.has(tail.id)


def test_prefixes_are_kept_per_plan_cluster_namespace_and_head(manifest: Manifest) -> None:
    block = row((1,))
    manifest.add(block)
    for plan, cluster, head in (("a", 0, "h"), ("a", 0, "i"), ("a", 1, "h"), ("b", 0, "h")):
        manifest.set_prefix(PrefixRow(plan, cluster, ROOT, head, block.id, 1))
    manifest.set_prefix(PrefixRow("a", 0, ROOT, "h", block.id, 5))
    assert len(manifest.prefixes("a")) == 3 and len(manifest.prefixes("b")) == 1
    assert [(r.head, r.num_tokens) for r in manifest.prefixes("a", 0)] == [("h", 5), ("i", 1)]
    assert manifest.prefixes("a", 2) == []


def test_a_prefix_whose_block_is_gone_is_not_told(manifest: Manifest) -> None:
    block = row((1,))
    manifest.add(block)
    manifest.set_prefix(PrefixRow("plan", 0, ROOT, "head", block.id, 1))
    manifest.remove([block.id])
    assert manifest.prefixes("plan") == []


def test_counters_add_up(manifest: Manifest) -> None:
    manifest.count(["a", "b", "a"])
    manifest.count(["a"])
    manifest.count([])
    assert manifest.counters() == {"a": 3, "b": 1}


def test_two_manifests_on_one_file_see_each_other(tmp_path: Path) -> None:
    one, two = (Manifest(tmp_path / "manifest.sqlite") for _ in range(2))
    one.add(row((1,)))
    assert two.has(row((1,)).id)
    two.remove([row((1,)).id])
    assert not one.has(row((1,)).id) and one.disk_bytes() == 0
    one.close()
    two.close()


def test_many_threads_lose_no_count(manifest: Manifest) -> None:
    def work(number: int) -> None:
        for i in range(20):
            manifest.count(["n"])
            manifest.add(row((number, i)))

    with ThreadPoolExecutor(4) as pool:
        list(pool.map(work, range(4)))
    assert manifest.counters()["n"] == 80
    assert (manifest.num_blocks(), manifest.disk_bytes()) == (80, 8000)


def test_a_failed_write_leaves_the_manifest_as_it_was(manifest: Manifest) -> None:
    bad = BlockRow("x", ROOT, ROOT, (1,), None)  # type: ignore[arg-type]
    with pytest.raises(sqlite3.IntegrityError):
        manifest.count([None])  # type: ignore[list-item]
    manifest.add(bad)
    manifest.add(row((1,)))
    assert manifest.num_blocks() == 1


def test_the_file_is_its_owners_alone(tmp_path: Path) -> None:
    Manifest(tmp_path / "manifest.sqlite").close()
    assert (tmp_path / "manifest.sqlite").stat().st_mode & 0o777 == 0o600
