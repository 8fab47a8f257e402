"""Block ids are fixed for ever, and the longest prefix is that of a naive search."""

import contextlib
import tempfile
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from centroidkv.errors import CacheFull
from centroidkv.kv.blocks import (
    BLOCK_TOKENS,
    Match,
    Step,
    block_id,
    chain,
    longest_prefix,
    namespace_id,
    pack,
    split,
    unpack,
)
from centroidkv.kv.disk import DiskBlocks
from centroidkv.kv.memory import MemoryBlocks
from centroidkv.protocols import BlockStore
from centroidkv.types import KVBlock, common_prefix

NAMESPACE = namespace_id("model", "tenant")


def tiny(num_tokens: int) -> KVBlock:
    numbers = np.zeros((1, 1, num_tokens, 1), np.float32)
    return KVBlock(numbers, numbers, "float32")


# Two letters and lengths about the block borders, so that sequences really share prefixes.
sequences = st.builds(
    lambda length, changes: tuple(changes.get(i, 0) for i in range(length)),
    st.one_of(st.integers(1, 200), st.sampled_from([1, 63, 64, 65, 127, 128, 129, 192])),
    st.dictionaries(st.integers(0, 199), st.integers(1, 2), max_size=2),
)


def store_sequence(store: BlockStore, token_ids: Sequence[int]) -> None:
    for link in chain(NAMESPACE, token_ids):
        store.put(link.parent, token_ids[link.start : link.stop], tiny(link.stop - link.start))


def naive_prefix(stored: Sequence[Sequence[int]], prompt: Sequence[int]) -> int:
    longest = max((common_prefix(s, prompt) for s in stored), default=0)
    return min(longest, len(prompt) - 1)


def assert_is_a_block_table(match: Match, prompt: Sequence[int]) -> None:
    """Every step continues the one before; each but the last is a full block of the prompt."""
    parent, start = NAMESPACE, 0
    for step in match.steps[:-1]:
        assert (step.start, step.stop) == (start, start + BLOCK_TOKENS)
        assert step.id == block_id(parent, prompt[step.start : step.stop])
        parent, start = step.id, step.stop
    if match.steps:
        assert match.steps[-1].start == start < match.steps[-1].stop <= start + BLOCK_TOKENS


def test_namespace_ids_never_change() -> None:
    assert NAMESPACE == "6e7341212264ba5ba5fed9b469e042f4eacb001d02b11f9e670309e2c666d733d06b"
    assert namespace_id() == "6e73831470a6fcf9493cf74ebc6ba10e6ba4b999bf591c05cac9c04f9659d07ac208"


def test_block_ids_never_change() -> None:
    first = block_id(NAMESPACE, range(64))
    assert first == "492acc1e11b1e71a3848dff95a30e9b5dfa3c71e46c3a891e470ef71f0da48b1"
    assert block_id(first, [0, 1, 2**32 - 1]) == (
        "fed93ca28f170034e149628e17a18d6af7947297bbe2e4f95b650a67f7e3891e"
    )


def test_namespace_parts_are_kept_apart() -> None:
    assert namespace_id("ab", "c") != namespace_id("a", "bc") != namespace_id("abc")
    assert namespace_id("a", "") != namespace_id("a")
    assert namespace_id("\ud800") != namespace_id("?")


@given(st.lists(st.integers(0, 2**32 - 1)), st.lists(st.integers(0, 2**32 - 1)))
def test_packed_tokens_sort_as_tokens_and_come_back(one: list[int], other: list[int]) -> None:
    assert unpack(pack(one)) == tuple(one)
    assert (pack(one) < pack(other)) == (one < other)


@given(st.integers(0, 300))
def test_blocks_cover_a_sequence_once(num_tokens: int) -> None:
    ranges = list(split(num_tokens))
    assert [i for start, stop in ranges for i in range(start, stop)] == list(range(num_tokens))
    assert all(stop - start == BLOCK_TOKENS for start, stop in ranges[:-1])


@given(sequences)
def test_a_chain_from_a_later_block_is_the_end_of_the_whole_chain(tokens: tuple[int, ...]) -> None:
    links = chain(NAMESPACE, tokens)
    assert links[0].parent == NAMESPACE
    assert [x.parent for x in links[1:]] == [x.id for x in links[:-1]]
    for number, link in enumerate(links):
        assert chain(NAMESPACE, tokens, link.start) == links[number:]


def test_an_id_depends_on_every_token_before_it() -> None:
    one, other = list(range(130)), list(range(130))
    other[0] = 99
    assert chain(NAMESPACE, one)[-1].id != chain(NAMESPACE, other)[-1].id
    assert chain(namespace_id("other"), one)[-1].id != chain(NAMESPACE, one)[-1].id


@given(st.lists(sequences, max_size=6), sequences)
@settings(max_examples=150, deadline=None)
def test_the_longest_prefix_in_memory_is_that_of_a_naive_search(stored, prompt) -> None:
    store = MemoryBlocks(budget_bytes=1 << 20)
    for tokens in stored:
        store_sequence(store, tokens)
    match = longest_prefix(store, NAMESPACE, prompt)
    assert match.num_tokens == naive_prefix(stored, prompt)
    assert_is_a_block_table(match, prompt)


@given(st.lists(sequences, max_size=4), sequences)
@settings(max_examples=25, deadline=None)
def test_the_longest_prefix_on_disk_is_that_of_a_naive_search(stored, prompt) -> None:
    with tempfile.TemporaryDirectory() as folder:
        store = DiskBlocks(Path(folder), budget_bytes=1 << 24)
        for tokens in stored:
            store_sequence(store, tokens)
        match = longest_prefix(store, NAMESPACE, prompt)
        assert match.num_tokens == naive_prefix(stored, prompt)
        assert_is_a_block_table(match, prompt)
        assert all(store.get(s.id) is not None for s in match.steps)
        store.close()


@given(st.lists(sequences, max_size=5), sequences, st.integers(4, 40))
@settings(max_examples=25, deadline=None)
def test_the_longest_prefix_after_evictions_is_that_of_what_is_left(stored, prompt, kib) -> None:
    with tempfile.TemporaryDirectory() as folder:
        disk = DiskBlocks(Path(folder), budget_bytes=kib << 10)
        for tokens in stored:
            with contextlib.suppress(CacheFull):
                store_sequence(disk, tokens)
        chains = (disk.manifest.chain(row.id) for row in disk.manifest.rows())
        left = [[t for row in rows for t in row.token_ids] for rows in chains]
        match = longest_prefix(disk, NAMESPACE, prompt)
        assert match.num_tokens == naive_prefix(left, prompt)
        assert_is_a_block_table(match, prompt)
        disk.close()


@pytest.mark.parametrize("length", [1, 2, 63, 64, 65, 128, 129])
def test_at_least_one_token_is_left_to_compute(length: int) -> None:
    store = MemoryBlocks(budget_bytes=1 << 20)
    store_sequence(store, range(200))
    assert longest_prefix(store, NAMESPACE, range(length)).num_tokens == length - 1


def test_an_empty_store_and_an_empty_prompt_match_nothing() -> None:
    store = MemoryBlocks(budget_bytes=1 << 20)
    assert longest_prefix(store, NAMESPACE, range(100)) == Match(())
    store_sequence(store, range(100))
    assert longest_prefix(store, NAMESPACE, ()).num_tokens == 0
    assert longest_prefix(store, namespace_id("other"), range(100)).num_tokens == 0


def test_on_a_grid_a_match_ends_with_a_whole_chunk() -> None:
    ends = (64, 128, 192, 256, 320, 350)
    match = Match(tuple(Step(str(e), max(0, e - 64), e) for e in ends))
    assert match.on_grid(1) == match
    assert match.on_grid(256).num_tokens == 256
    assert match.on_grid(512) == Match(())
    assert Match(()).on_grid(256) == Match(())
