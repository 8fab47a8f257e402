"""Borrowed prefixes: whatever opens, writes and closes in whatever order, KV stays its own."""

import threading
from dataclasses import dataclass

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from centroidkv.models.arena import Arena, ArenaPool, KVShape, Resident
from centroidkv.models.lending import BorrowedArena, SequenceKV, SharedArenas

SHAPE = KVShape(1, 1, 1, 1, torch.float32, torch.device("cpu"))


@dataclass
class Running:
    kv: SequenceKV
    namespace: str
    tokens: list[int]

    def write(self, token_ids: list[int]) -> None:
        """Write KV that tells its token."""
        own = self.kv if isinstance(self.kv, Arena) else self.kv.tail
        told = torch.tensor(token_ids, dtype=torch.float32)[None, None, :, None]
        own.cache.update(told, told, 0)

    @property
    def held(self) -> list[int]:
        block = self.kv.snapshot(0, self.kv.num_tokens)
        assert (block.keys == block.values).all()
        return block.keys[0, 0, :, 0].astype(int).tolist()


def prompt(parts: tuple[int, int], own: int) -> list[int]:
    """70 tokens of one of two heads, 70 of one of two middles, and some of its own."""
    head, middle = parts
    return [head] * 70 + [10 + middle] * 70 + [100 + own] * (1 + own)


def opened(arenas: SharedArenas, parts: tuple[int, int], own: int, namespace: str) -> Running:
    tokens = prompt(parts, own)
    wanted = Resident.of(namespace, tokens)
    one = Running(arenas.open(len(tokens) + 8, wanted), namespace, tokens)
    arenas.working(one.kv)
    one.write(tokens[one.kv.num_tokens :])
    arenas.ready(one.kv, is_working=False)
    return one


bits = st.integers(0, 1)
opens = st.tuples(st.just("open"), st.tuples(bits, bits), st.integers(0, 5), bits)
decodes = st.tuples(st.just("decode"), st.integers(0, 9))
closes = st.tuples(st.just("close"), st.integers(0, 9))


@settings(max_examples=80, deadline=None)
@given(st.lists(st.one_of(opens, decodes, closes), max_size=30), st.sampled_from([0, 1 << 12]))
def test_no_order_of_events_mixes_sequences(events: list[tuple], budget: int) -> None:
    arenas = SharedArenas(ArenaPool(SHAPE, budget_bytes=budget))
    running: list[Running] = []
    for kind, *about in events:
        if kind == "open":
            parts, own, namespace = about
            running.append(opened(arenas, parts, own, str(namespace)))
        elif running:
            one = running[about[0] % len(running)]
            if kind == "decode" and one.kv.num_tokens < one.kv.capacity - 1:
                # A guess is written behind the token, and given up.
                valid = one.kv.num_tokens + 1
                one.write([7, 8])
                one.kv.resize(valid)
                one.tokens.append(7)
            elif kind == "close":
                running.remove(one)
                arenas.close(one.kv, Resident.of(one.namespace, one.tokens))
        assert all(r.held == r.tokens for r in running)
    for one in running:
        arenas.close(one.kv, Resident.of(one.namespace, one.tokens))
    assert arenas.num_bytes == 0


def test_what_is_lent_is_held_once() -> None:
    arenas = SharedArenas(ArenaPool(SHAPE, budget_bytes=0))
    running = [opened(arenas, (0, 0), own, "one") for own in range(5)]
    assert [type(r.kv) for r in running] == [Arena, *[BorrowedArena] * 4]
    assert [r.kv.num_tokens - len(r.tokens) for r in running] == [0] * 5
    assert arenas.num_bytes == sum(r.kv.num_bytes for r in running)
    assert arenas.num_bytes < 256 * SHAPE.bytes_per_token + 5 * 32 * SHAPE.bytes_per_token


def test_of_several_lenders_the_one_that_holds_most_is_taken() -> None:
    arenas = SharedArenas(ArenaPool(SHAPE, budget_bytes=0))
    opened(arenas, (0, 0), 1, "one")
    other = opened(arenas, (0, 1), 2, "one")
    third = opened(arenas, (0, 1), 3, "one")
    assert isinstance(other.kv, Arena), "less than half of it was there"
    assert isinstance(third.kv, BorrowedArena)
    assert (third.kv.lender, third.kv.lent) == (other.kv, 140)


def test_a_short_prefix_is_not_borrowed() -> None:
    arenas = SharedArenas(ArenaPool(SHAPE, budget_bytes=0))
    for number in range(2):
        wanted = Resident.of("one", [*range(60), 100 + number])
        one = Running(arenas.open(70, wanted), "one", [])
        assert isinstance(one.kv, Arena)


@pytest.mark.parametrize("error", [KeyboardInterrupt, MemoryError])
def test_what_was_to_be_lent_is_given_back_when_the_borrower_breaks_off(
    error: type[BaseException], monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: object) -> None:
        raise error

    arenas = SharedArenas(ArenaPool(SHAPE, budget_bytes=1 << 12))
    lender = opened(arenas, (0, 0), 1, "one")
    assert isinstance(lender.kv, Arena)
    with monkeypatch.context() as patch:
        patch.setattr("centroidkv.models.lending.BorrowedArena", fail)
        with pytest.raises(error):
            opened(arenas, (0, 0), 2, "one")
    assert lender.kv.lent_tokens == 0
    arenas.close(lender.kv, Resident.of("one", lender.tokens))
    assert arenas.num_bytes == 0


def test_others_go_on_while_it_is_found_out_whether_one_may_borrow() -> None:
    arenas = SharedArenas(ArenaPool(SHAPE, budget_bytes=0))
    lender = opened(arenas, (0, 0), 1, "one")
    others: list[SequenceKV] = []

    def may_borrow() -> bool:
        thread = threading.Thread(target=lambda: others.append(arenas.open(8)), daemon=True)
        thread.start()
        thread.join(5)
        return bool(others)

    wanted = Resident.of("one", lender.tokens)
    assert isinstance(arenas.open(200, wanted, may_borrow=may_borrow), BorrowedArena)
