"""Golden tests of requests that run at once: each answers as it does alone without reuse."""

import threading
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
from transformers import PretrainedConfig, Qwen3Config
from transformers.models.auto.modeling_auto import AutoModelForCausalLM

from centroidkv.config import Sampling
from centroidkv.models.attention import use_shared_kv_heads
from centroidkv.models.loading import wrap_model
from centroidkv.models.transformers_model import TransformersModel
from centroidkv.types import Drafts
from small_parts import make_llama, make_tokenizer

NUM = 8
TINY = {
    "vocab_size": 272,
    "hidden_size": 64,
    "intermediate_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "eos_token_id": None,
}


def make_model(max_batch: int = 16, *, config: PretrainedConfig | None = None) -> TransformersModel:
    """A random model that shares KV heads, as a loaded one does."""
    torch.manual_seed(0)
    llama = AutoModelForCausalLM.from_config(config) if config else make_llama()
    use_shared_kv_heads(llama)
    return wrap_model(llama, make_tokenizer(), max_batch=max_batch)


@pytest.fixture
def model() -> TransformersModel:
    return make_model()


def tokens(count: int, seed: int) -> list[int]:
    random = torch.Generator().manual_seed(seed)
    return torch.randint(94, (count,), generator=random).tolist()


def prompts(num_clusters: int) -> list[list[int]]:
    """Prompts of some clusters, in turns: 200 tokens of the cluster, some of the question."""
    return [
        tokens(200, seed=100 + i % num_clusters) + tokens(5 + 3 * i, seed=i) for i in range(NUM)
    ]


def answer(
    model: TransformersModel,
    prompt: Sequence[int],
    *,
    namespace: str = "",
    max_tokens: int = 24,
    drafts: Drafts | None = None,
    apart: bool = False,
) -> list[int]:
    capacity = len(prompt) + max_tokens
    sequence = model.open_sequence(capacity, prompt, namespace=namespace, apart=apart)
    try:
        sequence.prefill(prompt[sequence.num_tokens :], drafts)
        return [t.id for t in sequence.decode(Sampling(max_tokens=max_tokens))]
    finally:
        sequence.close()


def at_once(model: TransformersModel, asked: Sequence[Sequence[int]], **options) -> list[list[int]]:
    """Answer in as many threads as there are prompts, which begin together."""
    start = threading.Barrier(len(asked))

    def one(prompt: Sequence[int]) -> list[int]:
        start.wait()
        return answer(model, prompt, namespace="one", **options)

    with ThreadPoolExecutor(len(asked)) as pool:
        return list(pool.map(one, asked))


@pytest.mark.parametrize("num_clusters", [1, 3])
def test_requests_at_once_answer_as_one_after_the_other(
    model: TransformersModel, num_clusters: int
) -> None:
    asked = prompts(num_clusters)
    alone = [answer(model, p) for p in asked]
    assert model.batcher.sizes.keys() == {1}
    assert at_once(model, asked) == alone
    assert max(model.batcher.sizes) > 1, "some forward ran several"
    assert model.arenas.num_borrowed == NUM - num_clusters, "each prefix was held once"
    assert model.arenas.num_bytes == 0 and model.batcher.num_open == 0


def test_drafts_are_verified_for_several_at_once(model: TransformersModel) -> None:
    asked = prompts(2)
    alone = [answer(model, p) for p in asked]
    for guess in (alone, [a[:2] + a[5:] for a in alone]):
        drafts = [
            Drafts(prompt=tuple(p), repeat=tuple(g)) for p, g in zip(asked, guess, strict=True)
        ]
        with ThreadPoolExecutor(NUM) as pool:
            running = [
                pool.submit(answer, model, p, namespace="one", drafts=d)
                for p, d in zip(asked, drafts, strict=True)
            ]
            assert [r.result() for r in running] == alone
    assert max(model.batcher.sizes) > 1 and model.arenas.num_borrowed > 0


def test_sequences_join_and_leave_while_others_run(model: TransformersModel) -> None:
    asked = prompts(2)
    lengths = [5, 40, 12, 3, 60, 1, 25, 8]
    alone = [answer(model, p, max_tokens=n) for p, n in zip(asked, lengths, strict=True)]
    with ThreadPoolExecutor(3) as pool:  # fewer threads than requests: they come when others end
        found = pool.map(
            lambda x: answer(model, x[0], namespace="one", max_tokens=x[1]),
            zip(asked, lengths, strict=True),
        )
        assert list(found) == alone
    assert max(model.batcher.sizes) > 1


def test_what_one_borrowed_outlives_the_lender(model: TransformersModel) -> None:
    first, second, third = (tokens(200, seed=9) + tokens(9, seed=s) for s in (1, 2, 3))
    alone = [answer(model, p) for p in (first, second, third)]
    lender = model.open_sequence(260, first, namespace="one")
    lender.prefill(first)
    borrower = model.open_sequence(260, second, namespace="one")
    assert borrower.num_tokens == 200
    lender.close()
    # Another takes over the lender's arena, but may not write over what is read.
    other = [*tokens(3, seed=5), *third]
    assert answer(model, other, namespace="one") == answer(model, other)
    assert answer(model, third, namespace="one") == alone[2]
    borrower.prefill(second[200:])
    assert [t.id for t in borrower.decode(Sampling(max_tokens=24))] == alone[1]
    borrower.close()
    assert answer(model, first, namespace="one") == alone[0]
    assert model.arenas.num_bytes == 0


def test_kv_that_was_borrowed_can_be_copied_out(model: TransformersModel) -> None:
    first, second = (tokens(200, seed=9) + tokens(9, seed=s) for s in (1, 2))
    lender = model.open_sequence(260, first, namespace="one")
    lender.prefill(first)
    with_prefix = model.open_sequence(260, second, namespace="one")
    with_prefix.prefill(second[with_prefix.num_tokens :])
    whole = model.open_sequence(260)
    whole.prefill(second)
    for start, stop in ((128, 192), (192, 209), (200, 209), (0, 209)):
        one, other = with_prefix.snapshot(start, stop), whole.snapshot(start, stop)
        assert one.num_tokens == stop - start
        torch.testing.assert_close(torch.from_numpy(one.keys), torch.from_numpy(other.keys))
        torch.testing.assert_close(torch.from_numpy(one.values), torch.from_numpy(other.values))
    for sequence in (whole, with_prefix, lender):
        sequence.close()


def test_a_prefix_that_is_being_computed_is_waited_for(model: TransformersModel) -> None:
    first, second = (tokens(600, seed=9) + tokens(9, seed=s) for s in (1, 2))
    lender = model.open_sequence(700, first, namespace="one")
    with ThreadPoolExecutor(1) as pool:
        opening = pool.submit(model.open_sequence, 700, second, namespace="one")
        lender.prefill(first)
        borrower = opening.result()
    assert borrower.num_tokens == 600
    lender.close()
    borrower.close()


def test_a_prefix_that_never_comes_is_computed(model: TransformersModel) -> None:
    first, second = (tokens(200, seed=9) + tokens(9, seed=s) for s in (1, 2))
    idle = model.open_sequence(260, first, namespace="one")
    assert answer(model, second, namespace="one") == answer(model, second)
    idle.close()
    with ThreadPoolExecutor(1) as pool:
        idle = model.open_sequence(260, second, namespace="one")
        opening = pool.submit(answer, model, first, namespace="one")
        idle.close()  # an error before its prompt was computed
        assert opening.result() == answer(model, first)


def test_nobody_borrows_from_another_namespace(model: TransformersModel) -> None:
    prompt = tokens(209, seed=1)
    lender = model.open_sequence(260, prompt, namespace="one")
    lender.prefill(prompt)
    for namespace in ("two", ""):
        stranger = model.open_sequence(260, prompt, namespace=namespace)
        assert stranger.num_tokens == 0
        stranger.close()
    lender.close()
    assert model.arenas.num_borrowed == 0


def test_a_request_left_in_the_middle_leaves_the_others_whole(model: TransformersModel) -> None:
    asked = prompts(1)
    alone = [answer(model, p) for p in asked]

    def leave(prompt: Sequence[int]) -> None:
        sequence = model.open_sequence(len(prompt) + 24, prompt, namespace="one")
        sequence.prefill(prompt[sequence.num_tokens :])
        stream = sequence.decode(Sampling(max_tokens=24))
        next(stream)
        next(stream)
        sequence.close()

    with ThreadPoolExecutor(2 * NUM) as pool:
        left = [pool.submit(leave, p) for p in asked]
        found = [pool.submit(answer, model, p, namespace="one") for p in asked]
        assert [f.result() for f in found] == alone
        for one in left:
            one.result()
    assert model.arenas.num_bytes == 0


def test_an_error_in_one_sequence_is_not_that_of_the_others(model: TransformersModel) -> None:
    asked = prompts(1)
    alone = [answer(model, p) for p in asked]

    def fail() -> None:
        with pytest.raises(IndexError):
            answer(model, [*tokens(20, seed=77), 100_000])  # no such token

    with ThreadPoolExecutor(2 * NUM) as pool:
        failing = [pool.submit(fail) for _ in asked]
        found = [pool.submit(answer, model, p, namespace="one") for p in asked]
        assert [f.result() for f in found] == alone
        for one in failing:
            one.result()


def test_one_at_a_time_neither_batches_nor_borrows() -> None:
    model = make_model(max_batch=1)
    asked = prompts(1)
    alone = [answer(model, p) for p in asked]
    assert at_once(model, asked) == alone
    assert set(model.batcher.sizes) == {1} and model.arenas.num_borrowed == 0


def test_what_is_apart_neither_batches_nor_borrows(model: TransformersModel) -> None:
    asked = prompts(1)
    alone = [answer(model, p) for p in asked]
    assert at_once(model, asked, apart=True) == alone
    assert set(model.batcher.sizes) == {1} and model.arenas.num_borrowed == 0
    with ThreadPoolExecutor(NUM) as pool:  # and others go on sharing
        found = [
            pool.submit(answer, model, p, namespace="one", apart=i % 2 == 1)
            for i, p in enumerate([*asked, *asked])
        ]
        assert [f.result() for f in found] == [*alone, *alone]
    assert max(model.batcher.sizes) > 1


def test_a_lone_request_goes_the_plain_way(model: TransformersModel) -> None:
    for prompt in prompts(1):
        answer(model, prompt, namespace="one")
    assert set(model.batcher.sizes) == {1} and model.arenas.num_borrowed == 0


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_other_models_with_plain_attention_are_batched(dtype: torch.dtype) -> None:
    config = Qwen3Config(**TINY, head_dim=16, dtype=dtype)
    assert make_model(config=config).packing.is_possible


def test_what_cannot_be_batched_takes_turns() -> None:
    """A model that was handed over as it is has another attention function."""
    model = wrap_model(make_llama(), make_tokenizer())
    assert not model.packing.is_possible
    asked = prompts(1)[:3]
    assert at_once(model, asked) == [answer(model, p) for p in asked]
    assert set(model.batcher.sizes) == {1}


def test_sixteen_requests_hold_their_prefix_once(model: TransformersModel) -> None:
    prefix, question, new = 1024, 30, 32
    asked = [tokens(prefix, seed=9) + tokens(question, seed=s) for s in range(16)]
    open_ones = []
    for prompt in asked:
        sequence = model.open_sequence(len(prompt) + new, prompt, namespace="one")
        sequence.prefill(prompt[sequence.num_tokens :])
        open_ones.append(sequence)
    needed = (prefix + 16 * (question + new)) * model.shape.bytes_per_token
    assert model.arenas.num_bytes <= 1.15 * needed
    for sequence in open_ones:
        sequence.close()
    assert model.arenas.num_bytes == 0
