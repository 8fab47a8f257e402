"""Packed attention is plain attention: any lengths, any shared prefixes, any grouping of heads."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.nn.functional import scaled_dot_product_attention

from centroidkv.models.arena import Arena, KVShape
from centroidkv.models.lending import BorrowedArena, SequenceKV
from centroidkv.models.packed import NotPackable, Pack, Segment

CPU = torch.device("cpu")


class Layer(torch.nn.Module):
    layer_idx = 0


def filled(kv: SequenceKV, num_tokens: int) -> None:
    """Give a sequence KV of so many tokens."""
    own = kv if isinstance(kv, Arena) else kv.tail
    new = num_tokens - kv.num_tokens
    for layer, (keys, values) in enumerate(zip(own.keys, own.values, strict=True)):
        shape = (1, keys.shape[1], new)
        own.cache.update(
            torch.randn(*shape, keys.shape[3]), torch.randn(*shape, values.shape[3]), layer
        )


def whole(kv: SequenceKV) -> tuple[torch.Tensor, torch.Tensor]:
    block = kv.snapshot(0, kv.num_tokens)
    return torch.from_numpy(block.keys[0]), torch.from_numpy(block.values[0])


def plain(query: torch.Tensor, kv: SequenceKV) -> torch.Tensor:
    """Attend as torch does, the new tokens being the last ones; [heads, tokens, value_dim]."""
    keys, values = whole(kv)
    new, held = query.shape[1], keys.shape[1]
    mask = torch.ones(new, held, dtype=torch.bool).tril(held - new)
    found = scaled_dot_product_attention(
        query[None], keys[None], values[None], attn_mask=mask, enable_gqa=True
    )
    return found[0]


def opened(shape: KVShape, held: int, borrowed: list[tuple[int, int]]) -> list[SequenceKV]:
    """One sequence, and others that borrow of it: (tokens lent, tokens of their own)."""
    lender = Arena(shape, held + 16)
    filled(lender, held)
    sequences: list[SequenceKV] = [lender]
    for lent, own in borrowed:
        kv = BorrowedArena(lender, min(lent, held), min(lent, held) + own + 16)
        filled(kv, min(lent, held) + own)
        sequences.append(kv)
    return sequences


lengths = st.lists(
    st.tuples(
        st.integers(1, 40),
        st.lists(st.tuples(st.integers(1, 40), st.integers(0, 20)), max_size=4),
    ),
    min_size=1,
    max_size=3,
)


@settings(max_examples=60, deadline=None)
@given(
    groups=lengths,
    new=st.lists(st.integers(1, 9), min_size=15, max_size=15),
    heads=st.sampled_from([(1, 1), (2, 2), (2, 3), (3, 1)]),
    value_dim=st.sampled_from([8, 6]),
    skips_holders=st.booleans(),
    seed=st.integers(0, 99),
)
def test_it_is_plain_attention(groups, new, heads, value_dim, skips_holders, seed) -> None:
    torch.manual_seed(seed)
    kv_heads, num_groups = heads
    shape = KVShape(1, kv_heads, 8, value_dim, torch.float32, CPU)
    sequences = []
    for held, borrowed in groups:
        found = opened(shape, held, borrowed)
        # A lender may have ended, or not be among those who run.
        sequences += found[1:] if skips_holders and len(found) > 1 else found
    segments = [Segment(range(n), kv) for n, kv in zip(new, sequences, strict=False)]
    pack = Pack(segments, groups=num_groups)
    count = pack.token_ids.shape[1]
    query = torch.randn(1, kv_heads * num_groups, count, 8)
    pack.update(torch.randn(1, kv_heads, count, 8), torch.randn(1, kv_heads, count, value_dim), 0)
    output, _ = pack.attend(Layer(), query)
    assert output.shape == (1, count, kv_heads * num_groups, value_dim)
    at = 0
    for segment in pack.order:
        stop = at + len(segment.token_ids)
        expected = plain(query[0, :, at:stop], segment.kv).transpose(0, 1)
        torch.testing.assert_close(output[0, at:stop], expected, rtol=1e-5, atol=2e-6)
        at = stop


def test_positions_and_rows_are_those_of_each_sequence() -> None:
    shape = KVShape(1, 1, 4, 4, torch.float32, CPU)
    lender, borrower = opened(shape, 10, [(6, 3)])
    pack = Pack([Segment([7], borrower), Segment([1, 2, 3], lender, rows=2)], groups=1)
    assert [s.kv for s in pack.order] == [lender, borrower]
    assert pack.token_ids.tolist() == [[1, 2, 3, 7]]
    assert pack.positions.tolist() == [[10, 11, 12, 9]]
    assert pack.rows.tolist() == [1, 2, 3]


@pytest.mark.parametrize("option", ["softcap", "sliding_window", "s_aux"])
def test_attention_of_another_kind_is_refused(option: str) -> None:
    shape = KVShape(1, 1, 4, 4, torch.float32, CPU)
    pack = Pack([Segment([1], opened(shape, 3, [])[0])], groups=1)
    pack.update(torch.randn(1, 1, 1, 4), torch.randn(1, 1, 1, 4), 0)
    with pytest.raises(NotPackable, match=option):
        pack.attend(Layer(), torch.randn(1, 1, 1, 4), **{option: 4})
