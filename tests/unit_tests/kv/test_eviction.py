"""What leaves when a budget is reached, and what running requests keep from leaving."""

from pathlib import Path

import pytest

from centroidkv.kv.blocks import block_id, namespace_id
from centroidkv.kv.eviction import Leases, leaves_to_evict
from centroidkv.kv.manifest import BlockRow, Manifest

ROOT = namespace_id("test")


@pytest.fixture
def manifest(tmp_path: Path):
    manifest = Manifest(tmp_path / "manifest.sqlite")
    yield manifest
    manifest.close()


def add_leaves(manifest: Manifest, count: int) -> list[str]:
    ids = [block_id(ROOT, (i,)) for i in range(count)]
    for number, own in enumerate(ids):
        manifest.add(BlockRow(own, ROOT, ROOT, (number,), 10))
    return ids


def test_a_lease_is_held_until_its_last_holder_lets_go() -> None:
    leases = Leases()
    with leases.hold(["a", "b"]):
        with leases.hold(iter(["a"])):
            assert "a" in leases and "b" in leases
        assert "a" in leases
    assert "a" not in leases and "b" not in leases


def test_a_lease_ends_when_its_request_fails() -> None:
    leases = Leases()
    with pytest.raises(RuntimeError), leases.hold(["a"]):
        raise RuntimeError
    assert "a" not in leases


def test_the_oldest_leaves_worth_the_excess_are_chosen(manifest: Manifest) -> None:
    ids = add_leaves(manifest, 5)
    assert leaves_to_evict(manifest, 11, Leases()) == ids[:2]
    assert leaves_to_evict(manifest, 0, Leases()) == []
    assert leaves_to_evict(manifest, 10**9, Leases()) == ids


def test_leased_leaves_are_passed_over(manifest: Manifest) -> None:
    ids = add_leaves(manifest, 3)
    leases = Leases()
    with leases.hold(ids[:2]):
        assert leaves_to_evict(manifest, 10, leases) == [ids[2]]
    with leases.hold(ids):
        assert leaves_to_evict(manifest, 10, leases) == []


def test_many_leased_leaves_do_not_hide_a_free_one(manifest: Manifest) -> None:
    ids = add_leaves(manifest, 301)
    leases = Leases()
    with leases.hold(ids[:300]):
        assert leaves_to_evict(manifest, 10, leases) == [ids[300]]
