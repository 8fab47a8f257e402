"""Pinned clusters stay on disk, and in memory if asked, within the budgets."""

import pytest

from centroidkv import Engine
from centroidkv.errors import ConfigError
from word_bank import Built


def filled(engine: Engine) -> int:
    """Return a cluster that has KV."""
    plan = engine.router.plan
    assert plan is not None
    rows = engine.store.blocks.disk.manifest.prefixes(plan.id)
    assert rows, "the built store has filled clusters"
    return rows[0].cluster


def held(engine: Engine, cluster: int) -> list[str]:
    plan, manifest = engine.router.plan, engine.store.blocks.disk.manifest
    assert plan is not None
    last = [r.block for r in manifest.prefixes(plan.id, cluster)]
    return [row.id for block in last for row in manifest.chain(block)]


def test_a_pinned_cluster_is_shown_and_kept(built: Built, open_engine) -> None:
    engine = open_engine()
    cluster = filled(engine)
    engine.pins.add(cluster, in_memory=True)
    (pinned,) = engine.stats().pinned_clusters
    assert (pinned.cluster, pinned.in_memory) == (cluster, True)
    assert pinned.num_blocks == len(set(held(engine, cluster))) and pinned.num_bytes > 0
    memory, disk = engine.store.blocks.memory, engine.store.blocks.disk
    assert all(memory.has(b) for b in held(engine, cluster))
    ends = {r.block for r in disk.manifest.prefixes(pinned.plan, cluster)}
    assert not ends & {b for b, _ in disk.manifest.leaves(10_000)}
    engine.close()
    again = open_engine()
    assert again.pins.all() == [pinned]
    assert all(again.store.blocks.memory.has(b) for b in held(again, cluster))
    again.pins.remove(cluster)
    assert again.pins.all() == [] and again.stats().pinned_clusters == ()


def test_pins_that_cannot_be_are_refused(built: Built, open_engine) -> None:
    engine = open_engine()
    cluster = filled(engine)
    with pytest.raises(ConfigError, match="no cluster 999; they are 0 to"):
        engine.pins.add(999)
    engine.store.blocks.disk.budget_bytes = 10
    with pytest.raises(ConfigError, match="raise disk_budget_bytes"):
        engine.pins.add(cluster)
    assert engine.pins.all() == []


def test_memory_is_reckoned_with_what_kv_takes_there(built: Built, open_engine) -> None:
    engine = open_engine()
    cluster = filled(engine)
    blocks = engine.store.blocks
    loaded = [blocks.get(b) for b in set(held(engine, cluster))]
    blocks.memory.budget_bytes = sum(b.num_bytes for b in loaded if b is not None)
    # As if it were coded: a quarter on disk of what it takes in memory.
    blocks.disk.manifest._db.execute("UPDATE blocks SET num_bytes = num_bytes / 4")
    with pytest.raises(ConfigError, match="raise memory_budget_bytes"):
        engine.pins.add(cluster, in_memory=True)
