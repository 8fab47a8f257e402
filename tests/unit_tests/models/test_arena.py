"""The arena holds KV in place: what goes in comes out, and a pool hands arenas on."""

import threading
from collections.abc import Sequence

import numpy as np
import pytest
import torch
from transformers import (
    Cache,
    DynamicCache,
    Gemma2Config,
    LlamaConfig,
    MambaConfig,
    MistralConfig,
    PretrainedConfig,
)
from transformers.models.auto.modeling_auto import AutoModelForCausalLM

from centroidkv.errors import UnsupportedModel
from centroidkv.models.arena import NOBODY, Arena, ArenaPool, KVShape, Resident, kv_shape
from centroidkv.types import KVBlock
from small_parts import make_block, make_llama

CPU = torch.device("cpu")
TINY = {
    "vocab_size": 272,
    "hidden_size": 32,
    "intermediate_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
}


def shape(dtype: torch.dtype = torch.float32) -> KVShape:
    """The shape of `make_block`."""
    return KVShape(2, 2, 4, 6, dtype, CPU)


def bits(block: KVBlock) -> bytes:
    return block.keys.tobytes() + block.values.tobytes()


@pytest.mark.parametrize("dtype", ["float32", "float16", "bfloat16"])
def test_what_is_appended_comes_out_bit_by_bit(dtype: str) -> None:
    arena = Arena(shape(getattr(torch, dtype)), 256)
    blocks = [make_block(n, seed=n, dtype=dtype) for n in (64, 64, 10)]
    for block in blocks:
        arena.append(block)
    assert arena.num_tokens == 138
    for block, start in zip(blocks, (0, 64, 128), strict=True):
        out = arena.snapshot(start, start + block.num_tokens)
        assert (out.dtype, out.keys.shape) == (dtype, block.keys.shape)
        assert bits(out) == bits(block)


def test_a_part_of_a_block_can_be_appended() -> None:
    arena, block = Arena(shape(), 256), make_block(64)
    arena.append(block.part(0, 20))
    arena.append(block.part(20, 64))
    assert bits(arena.snapshot(0, 64)) == bits(block)


def test_a_block_whose_memory_is_read_only_can_be_appended() -> None:
    block = make_block(8)
    block.keys.flags.writeable = block.values.flags.writeable = False
    arena = Arena(shape(), 256)
    arena.append(block)
    assert bits(arena.snapshot(0, 8)) == bits(block)


def test_a_snapshot_is_a_copy() -> None:
    arena = Arena(shape(), 256)
    arena.append(make_block(8, seed=1))
    taken = arena.snapshot(0, 8)
    arena.resize(0)
    arena.append(make_block(8, seed=2))
    assert bits(taken) == bits(make_block(8, seed=1))
    taken.keys[:] = 0
    assert bits(arena.snapshot(0, 8)) == bits(make_block(8, seed=2))


def test_the_size_is_that_of_its_memory() -> None:
    arena = Arena(shape(torch.bfloat16), 100)
    assert arena.num_bytes == arena.keys.nbytes + arena.values.nbytes
    assert arena.num_bytes == 100 * shape(torch.bfloat16).bytes_per_token


def test_its_cache_is_one_of_transformers() -> None:
    arena = Arena(shape(), 256)
    assert isinstance(arena.cache, Cache)
    arena.append(make_block(8))
    assert arena.cache.get_seq_length() == 8
    new = torch.ones(1, 2, 3, 4), torch.ones(1, 2, 3, 6)
    keys, values = arena.cache.update(*new, 0)
    assert keys.shape == (1, 2, 11, 4) and values.shape == (1, 2, 11, 6)
    assert keys.data_ptr() == arena.keys[0].data_ptr(), "nothing was moved"
    np.testing.assert_array_equal(keys[0, :, :8].numpy(), make_block(8).keys[0])


# the pool


def test_an_arena_given_back_is_taken_again_empty() -> None:
    pool = ArenaPool(shape(), budget_bytes=1 << 20)
    arena = pool.take(100)
    arena.append(make_block(8))
    pool.give(arena)
    again = pool.take(200)
    assert again is arena and again.num_tokens == 0
    assert again.cache.get_seq_length() == 0


def test_an_arena_has_room_for_what_was_asked() -> None:
    pool = ArenaPool(shape(), budget_bytes=1 << 20)
    assert [pool.take(n).capacity >= n for n in (1, 256, 257, 1000)] == [True] * 4


def test_two_requests_never_share_an_arena() -> None:
    pool = ArenaPool(shape(), budget_bytes=1 << 20)
    one, two = pool.take(10), pool.take(10)
    assert one is not two
    one.append(make_block(8, seed=1))
    two.append(make_block(8, seed=2))
    assert bits(one.snapshot(0, 8)) == bits(make_block(8, seed=1))


def test_the_smallest_arena_that_fits_is_taken() -> None:
    pool = ArenaPool(shape(), budget_bytes=1 << 20)
    large, small = pool.take(1000), pool.take(100)
    pool.give(large)
    pool.give(small)
    assert pool.take(50) is small
    assert pool.take(50) is large
    pool.give(small)
    assert pool.take(257) is not small


def test_free_arenas_stay_within_the_budget() -> None:
    one = Arena(shape(), 256).num_bytes
    pool = ArenaPool(shape(), budget_bytes=2 * one)
    taken = [pool.take(200) for _ in range(4)]
    for arena in taken:
        pool.give(arena)
    again = [pool.take(200) for _ in range(4)]
    assert sum(a in taken for a in again) == 2
    nothing = ArenaPool(shape(), budget_bytes=0)
    arena = nothing.take(10)
    nothing.give(arena)
    assert nothing.take(10) is not arena


# which models have plain KV


def build(config: PretrainedConfig):
    torch.manual_seed(0)
    return AutoModelForCausalLM.from_config(config)


def test_the_shape_is_read_from_the_model() -> None:
    found = kv_shape(make_llama())
    assert found == KVShape(2, 2, 16, 16, torch.float32, CPU)
    assert found.bytes_per_token == 2 * 2 * 32 * 4
    assert kv_shape(make_llama().to(torch.bfloat16)).dtype == torch.bfloat16


def test_windows_are_read_layer_by_layer() -> None:
    found = kv_shape(build(Gemma2Config(**TINY, head_dim=8, sliding_window=16)))
    assert [layer.window for layer in found.with_kv] == [16, None]
    assert found.is_stacked and found.num_layers == 2


def test_a_sliding_window_that_is_switched_off_is_plain_kv() -> None:
    assert kv_shape(build(MistralConfig(**TINY, sliding_window=None))).num_layers == 2


def odd_models() -> dict[str, PretrainedConfig]:
    from transformers import FalconMambaConfig, Lfm2Config, RwkvConfig

    mamba = {"vocab_size": 272, "hidden_size": 32, "num_hidden_layers": 2, "state_size": 4}
    return {
        "mamba": MambaConfig(**mamba),
        "falcon mamba": FalconMambaConfig(**mamba),
        "convolutions": Lfm2Config(**TINY, layer_types=["conv", "full_attention"]),
        "rwkv": RwkvConfig(vocab_size=272, hidden_size=32, num_hidden_layers=2),
    }


@pytest.mark.parametrize("kind", odd_models())
def test_a_model_whose_state_cannot_be_cut_is_refused(kind: str) -> None:
    model = build(odd_models()[kind])
    with pytest.raises(UnsupportedModel, match=type(model).__name__):
        kv_shape(model)


def test_a_refused_model_is_told_what_to_do() -> None:
    with pytest.raises(UnsupportedModel, match="use a model with full or sliding-window attention"):
        kv_shape(build(odd_models()["mamba"]))


def test_reading_the_shape_leaves_the_model_as_it_was() -> None:
    model = build(LlamaConfig(**TINY))
    before = {n: t.clone() for n, t in model.state_dict().items()}
    kv_shape(model)
    assert all(torch.equal(t, before[n]) for n, t in model.state_dict().items())
    assert DynamicCache(config=model.config).get_seq_length() == 0


# residents: an arena that is taken over as it is


def resident(tokens: Sequence[int], namespace: str = "one") -> Resident:
    return Resident.of(namespace, tokens)


def left_behind(pool: ArenaPool, held: Resident, capacity: int = 100) -> Arena:
    arena = pool.take(capacity, held)
    arena.resize(len(held.token_ids))
    pool.give(arena, held)
    return arena


def test_a_sequence_that_begins_alike_takes_the_arena_over() -> None:
    pool = ArenaPool(shape(), budget_bytes=1 << 20)
    arena = left_behind(pool, resident(range(80)))
    taken = pool.take(100, resident([*range(70), 7, 7, 7]))
    assert taken is arena
    assert taken.num_tokens == 70


def test_one_token_is_left_to_compute() -> None:
    pool = ArenaPool(shape(), budget_bytes=1 << 20)
    left_behind(pool, resident(range(80)))
    assert pool.take(100, resident(range(80))).num_tokens == 79


def test_no_other_namespace_and_no_shared_head_alone_takes_it_over() -> None:
    pool = ArenaPool(shape(), budget_bytes=1 << 20)
    arena = left_behind(pool, resident(range(80)))
    others = (resident(range(80), "two"), resident([*range(30), *[7] * 60]), resident([]), NOBODY)
    for wanted in others:
        other = pool.take(100, wanted)
        assert other is not arena
        assert other.num_tokens == 0
    # It is still there for those who share it.
    assert pool.take(100, resident(range(80))) is arena


def test_without_room_a_resident_makes_way_and_its_kv_is_not_found() -> None:
    one = Arena(shape(), 256).num_bytes
    pool = ArenaPool(shape(), budget_bytes=one)
    arena = left_behind(pool, resident(range(80)))
    taken = pool.take(100, resident([5] * 80))
    assert taken is arena
    assert taken.num_tokens == 0
    pool.give(taken)
    assert pool.take(100, resident(range(80))).num_tokens == 0


def test_arenas_may_be_given_back_by_the_garbage_collector_within_take() -> None:
    pool = ArenaPool(shape(), budget_bytes=1 << 20)
    left = Arena(shape(), 1)

    class Collecting(Resident):
        """Stands for an allocation at which the collector runs."""

        def __getattribute__(self, name: str) -> object:
            if name == "namespace":
                pool.give(left)
            return object.__getattribute__(self, name)

    pool.give(Arena(shape(), 256), Resident.of("one", [1, 2, 3, 4]))
    taken: list[Arena] = []
    wanted = Collecting("one", Resident.of("one", [1, 2, 3, 4]).token_ids)
    thread = threading.Thread(target=lambda: taken.append(pool.take(8, wanted)), daemon=True)
    thread.start()
    thread.join(5)
    assert [a.num_tokens for a in taken] == [3]
