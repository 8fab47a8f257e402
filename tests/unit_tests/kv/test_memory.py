"""The memory tier: bounded, least recently used first out, safe for many threads."""

from concurrent.futures import ThreadPoolExecutor

from hypothesis import given, settings
from hypothesis import strategies as st

from centroidkv.kv.blocks import block_id, namespace_id
from centroidkv.kv.memory import MemoryBlocks
from centroidkv.types import common_prefix
from small_parts import make_block

ROOT = namespace_id("test")
SIZE = make_block(1).num_bytes


def test_a_block_comes_back_as_it_was_put() -> None:
    store, block = MemoryBlocks(budget_bytes=1 << 20), make_block(2)
    own = store.put(ROOT, (1, 2), block)
    assert own == block_id(ROOT, (1, 2))
    assert store.has(own) and store.get(own) is block
    assert store.num_bytes == block.num_bytes


def test_an_unknown_block_is_none() -> None:
    store = MemoryBlocks(budget_bytes=1 << 20)
    assert store.get(ROOT) is None and not store.has(ROOT)
    assert store.neighbours(ROOT, (1,)) == []
    store.delete(ROOT)
    assert len(store) == 0


def test_putting_twice_counts_once() -> None:
    store = MemoryBlocks(budget_bytes=1 << 20)
    assert store.put(ROOT, (1,), make_block(1)) == store.put(ROOT, (1,), make_block(1))
    assert (len(store), store.num_bytes) == (1, SIZE)


def test_a_block_larger_than_the_budget_is_refused_and_costs_no_other() -> None:
    store = MemoryBlocks(budget_bytes=2 * SIZE)
    store.put(ROOT, (1,), make_block(1))
    assert store.put(ROOT, (2, 2, 2), make_block(3)) is None
    assert len(store) == 1


def test_the_least_recently_used_block_leaves_first() -> None:
    store = MemoryBlocks(budget_bytes=2 * SIZE)
    one, two = (store.put(ROOT, (i,), make_block(1)) for i in (1, 2))
    assert one and two
    store.get(one)
    three = store.put(ROOT, (3,), make_block(1))
    assert three
    assert [store.has(b) for b in (one, two, three)] == [True, False, True]
    assert [child for child, _ in store.neighbours(ROOT, (2,))] == [one, three]


def test_a_budget_of_nothing_keeps_nothing() -> None:
    store = MemoryBlocks(budget_bytes=0)
    assert store.put(ROOT, (1,), make_block(1)) is None
    assert (len(store), store.num_bytes) == (0, 0)


@given(
    st.lists(
        st.tuples(st.sampled_from(["put", "get", "delete"]), st.integers(0, 5), st.integers(1, 4)),
        max_size=40,
    )
)
@settings(deadline=None)
def test_bytes_are_those_of_the_blocks_held_and_never_exceed_the_budget(steps) -> None:
    store = MemoryBlocks(budget_bytes=6 * SIZE)
    sizes: dict[str, int] = {}
    for action, name, num_tokens in steps:
        tokens = (name,) * num_tokens
        own = block_id(ROOT, tokens)
        if action == "put":
            store.put(ROOT, tokens, make_block(num_tokens))
            sizes[own] = num_tokens * SIZE
            assert store.has(own)
        elif action == "get":
            store.get(own)
        else:
            store.delete(own)
            assert not store.has(own)
        held = [size for block, size in sizes.items() if store.has(block)]
        assert (len(held), sum(held)) == (len(store), store.num_bytes)
        assert store.num_bytes <= store.budget_bytes


@given(
    st.lists(st.lists(st.integers(0, 2), min_size=1, max_size=5), max_size=12),
    st.lists(st.integers(0, 2), max_size=5),
)
@settings(deadline=None)
def test_one_of_the_neighbours_shares_the_longest_prefix(children, wanted) -> None:
    store = MemoryBlocks(budget_bytes=1 << 20)
    for child in children:
        store.put(ROOT, child, make_block(1))
    found = store.neighbours(ROOT, wanted)
    best = max((common_prefix(tokens, wanted) for _, tokens in found), default=0)
    assert best == max((common_prefix(c, wanted) for c in children), default=0)
    assert all(block_id(ROOT, tokens) == child for child, tokens in found)


def test_many_threads_leave_it_consistent() -> None:
    store = MemoryBlocks(budget_bytes=8 * SIZE)

    def work(seed: int) -> None:
        for i in range(60):
            own = store.put(ROOT, (seed * i % 17,), make_block(1))
            assert own
            store.get(own)
            store.neighbours(ROOT, (i,))
            if i % 5 == 0:
                store.delete(own)

    with ThreadPoolExecutor(4) as pool:
        list(pool.map(work, range(1, 5)))
    held = [t for t in range(17) if store.has(block_id(ROOT, (t,)))]
    assert len(held) == len(store) <= 8
    assert store.num_bytes == len(held) * SIZE
