"""Golden tests of bitwise mode: where a prefix comes from changes no bit of any logit."""

from collections.abc import Sequence

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from centroidkv.config import Sampling
from centroidkv.errors import ConfigError
from centroidkv.kv.blocks import BLOCK_TOKENS
from centroidkv.models.grid import GRID_TOKENS, GridModel, GridSequence
from centroidkv.models.loading import wrap_model
from centroidkv.protocols import CausalModel
from centroidkv.types import Drafts, KVBlock
from small_parts import make_llama, make_tokenizer

LENGTHS = [1, 255, 256, 257, 511, 512, 513, 600, 1000]
DTYPES = [torch.float32, torch.bfloat16]


def make_grid(dtype: torch.dtype = torch.float32, **options: int) -> GridModel:
    return GridModel(wrap_model(make_llama().to(dtype), make_tokenizer(), **options))


@pytest.fixture(scope="module", params=DTYPES, ids=str)
def grid(request: pytest.FixtureRequest) -> GridModel:
    return make_grid(request.param)


def tokens(count: int, *, seed: int = 1) -> list[int]:
    random = torch.Generator().manual_seed(seed)
    return torch.randint(0, 256, (count,), generator=random).tolist()


def answer(sequence: GridSequence, prompt: Sequence[int], count: int = 4) -> torch.Tensor:
    """Compute what is missing of a prompt, decode; return all logits, [count, vocabulary]."""
    sequence.prefill(prompt[sequence.num_tokens :])
    found = [sequence.logits.clone() for _ in sequence.decode(Sampling(max_tokens=count))]
    return torch.stack(found)


def cold(grid: GridModel, prompt: Sequence[int]) -> torch.Tensor:
    sequence = grid.open_sequence(len(prompt) + 4)
    logits = answer(sequence, prompt)
    sequence.close()
    return logits


def stored(grid: GridModel, prompt: Sequence[int]) -> list[KVBlock]:
    """Return the blocks of a prompt's whole chunks, as the store would have them."""
    sequence = grid.open_sequence(len(prompt))
    sequence.prefill(prompt)
    end = len(prompt) - len(prompt) % GRID_TOKENS
    blocks = [sequence.snapshot(at, at + BLOCK_TOKENS) for at in range(0, end, BLOCK_TOKENS)]
    sequence.close()
    return blocks


@pytest.mark.parametrize("length", LENGTHS)
def test_restored_chunks_change_no_bit(grid: GridModel, length: int) -> None:
    """The blocks are those of a longer prompt that begins alike; the capacity is another one."""
    prompt = tokens(length)
    whole = (length - 1) // GRID_TOKENS * GRID_TOKENS
    longer = [*prompt[: length - 1], *tokens(300, seed=2)]
    blocks = stored(grid, longer)[: (length - 1) // BLOCK_TOKENS]
    for capacity in (length + 4, length + 900):
        warm = grid.open_sequence(capacity)
        warm.restore(blocks)
        assert warm.num_tokens == whole
        assert torch.equal(answer(warm, prompt), cold(grid, prompt))
        warm.close()


@pytest.mark.parametrize("length", LENGTHS)
def test_an_arena_that_is_taken_over_changes_no_bit(grid: GridModel, length: int) -> None:
    prompt = tokens(length)
    sequence = grid.open_sequence(length + 4, prompt, namespace=f"taken {length}")
    first = answer(sequence, prompt)
    sequence.close()
    again = grid.open_sequence(length + 4, prompt, namespace=f"taken {length}")
    assert again.num_tokens == (length - 1) // GRID_TOKENS * GRID_TOKENS
    assert torch.equal(answer(again, prompt), first)
    again.close()
    assert torch.equal(cold(grid, prompt), first)


def test_the_kv_of_an_answer_is_not_taken_over(grid: GridModel) -> None:
    """The next turn's prompt begins with prompt and answer, which fill a chunk together."""
    prompt = tokens(500)
    sequence = grid.open_sequence(600, prompt, namespace="answer")
    sequence.prefill(prompt)
    spoken = [t.id for t in sequence.decode(Sampling(max_tokens=40))]
    sequence.close()
    turn = [*prompt, *spoken, *tokens(20, seed=3)]
    following = grid.open_sequence(600, turn, namespace="answer")
    assert following.num_tokens == GRID_TOKENS
    assert torch.equal(answer(following, turn), cold(grid, turn))
    following.close()


def test_a_prompt_that_leaves_the_residents_in_a_chunk_takes_whole_chunks(grid: GridModel) -> None:
    long = tokens(900)
    sequence = grid.open_sequence(910, long, namespace="leaving")
    sequence.prefill(long)
    sequence.close()
    other = [*long[:700], *tokens(150, seed=4)]
    taken = grid.open_sequence(910, other, namespace="leaving")
    assert taken.num_tokens == 512
    assert torch.equal(answer(taken, other), cold(grid, other))
    taken.close()


@settings(max_examples=15, deadline=None)
@given(length=st.integers(2, 900), shared=st.integers(0, 900))
def test_any_length_and_any_shared_part_change_no_bit(length: int, shared: int) -> None:
    model = _FLOAT
    prompt = tokens(length)
    other = [*prompt[:shared], *tokens(300, seed=5)]
    same = min(length - 1, len(other), shared)
    blocks = stored(model, other)[: same // BLOCK_TOKENS]
    warm = model.open_sequence(length + 4)
    warm.restore(blocks)
    assert warm.num_tokens == len(blocks) * BLOCK_TOKENS // GRID_TOKENS * GRID_TOKENS
    assert torch.equal(answer(warm, prompt), cold(model, prompt))
    warm.close()


_FLOAT = make_grid()


def test_a_prompt_that_breaks_off_inside_a_chunk_leaves_the_chunks_before(grid: GridModel) -> None:
    prompt = tokens(700)
    expected = cold(grid, prompt)
    layer = grid.model.model.model.layers[1]
    calls: list[int] = []

    def breaks(*_: object) -> None:
        calls.append(1)
        if len(calls) == 2:
            raise KeyboardInterrupt

    hook = layer.register_forward_pre_hook(breaks)
    sequence = grid.open_sequence(710, prompt, namespace="broken")
    with pytest.raises(KeyboardInterrupt):
        sequence.prefill(prompt[sequence.num_tokens :])
    hook.remove()
    sequence.close()
    again = grid.open_sequence(710, prompt, namespace="broken")
    assert again.num_tokens == GRID_TOKENS
    assert torch.equal(answer(again, prompt), expected)
    again.close()


def test_drafts_are_not_used(grid: GridModel) -> None:
    prompt = tokens(300)
    sequence = grid.open_sequence(340)
    sequence.prefill(prompt)
    plain = list(sequence.decode(Sampling(max_tokens=12)))
    sequence.close()
    sequence = grid.open_sequence(340)
    sequence.prefill(prompt, Drafts(tuple(prompt), repeat=tuple(t.id for t in plain)))
    again = list(sequence.decode(Sampling(max_tokens=12)))
    sequence.close()
    assert again == plain
    assert not any(t.is_drafted for t in again)


def test_the_number_of_threads_stays_what_it_was_on_opening() -> None:
    grid, prompt = make_grid(), tokens(600)
    before = torch.get_num_threads()
    expected = cold(grid, prompt)
    torch.set_num_threads(before + 1)
    try:
        seen: list[int] = []
        grid.model.model.register_forward_pre_hook(lambda *_: seen.append(torch.get_num_threads()))
        assert torch.equal(cold(grid, prompt), expected)
        assert set(seen) == {before}
        assert torch.get_num_threads() == before + 1
    finally:
        torch.set_num_threads(before)


def test_the_fingerprint_holds_grid_and_threads() -> None:
    model = wrap_model(make_llama(), make_tokenizer())
    here = GridModel(model).fingerprint
    assert here == GridModel(model).fingerprint != model.fingerprint
    before = torch.get_num_threads()
    torch.set_num_threads(before + 1)
    try:
        assert GridModel(model).fingerprint != here
    finally:
        torch.set_num_threads(before)


def test_it_is_a_model_like_any_other(grid: GridModel) -> None:
    assert isinstance(grid, CausalModel)
    assert grid.context_tokens == grid.model.context_tokens
    assert grid.encode("Hello") == grid.model.encode("Hello")
    assert grid.count_tokens("Hello") == 5
    assert GRID_TOKENS % BLOCK_TOKENS == 0
    with pytest.raises(ConfigError, match="bitwise=True cannot be promised for GridModel"):
        GridModel(grid)
