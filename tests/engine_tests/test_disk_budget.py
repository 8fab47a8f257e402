"""A store under a budget that is far smaller than what comes in."""

from collections.abc import Callable

from centroidkv import Engine

BUDGET_BYTES = 1_000_000


def test_twenty_times_the_budget_stays_under_it_and_sound(
    open_engine: Callable[..., Engine],
) -> None:
    engine = open_engine(disk_budget_bytes=BUDGET_BYTES)
    stored, most = 0, 0
    for number in range(100):
        words = " ".join(f"w{(37 * number + 11 * i) % 251} {number}" for i in range(100))
        engine.generate(words, max_tokens=1)
        stats = engine.stats()
        most = max(most, stats.disk_bytes)
        stored = stats.num_blocks + stats.counters.get("evicted_blocks", 0)
        if stored * stats.disk_bytes >= 20 * BUDGET_BYTES * stats.num_blocks:
            break
    assert stored * stats.disk_bytes >= 20 * BUDGET_BYTES * stats.num_blocks
    assert 0.9 * BUDGET_BYTES < most <= BUDGET_BYTES
    found = engine.check()
    assert found.is_clean
    assert found.num_blocks == stats.num_blocks > 0


def test_a_repair_that_indexes_blocks_stays_under_the_budget(
    open_engine: Callable[..., Engine],
) -> None:
    with open_engine() as engine:
        for number in range(4):
            engine.generate(
                f"question {number}: " + "how do I block a lost card? " * 8, max_tokens=1
            )
        engine.flush()
        manifest = engine.store.blocks.disk.manifest
        (leaf, _), *_ = manifest.leaves(1)
        manifest.remove([leaf])  # as a kill between a file and its row leaves it
        budget_bytes = engine.stats().disk_bytes
    with open_engine(disk_budget_bytes=budget_bytes) as engine:
        assert engine.check(repair=True).repaired
        assert 0 < engine.stats().disk_bytes <= budget_bytes
        assert engine.check().is_clean
