"""Requests at once through the engine, on a model that can share forwards and prefixes."""

import asyncio
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

import pytest

from centroidkv import Engine
from centroidkv.errors import GenerationTimeout
from centroidkv.iteration import iterate
from centroidkv.models.attention import use_shared_kv_heads
from centroidkv.models.loading import wrap_model
from centroidkv.models.transformers_model import TransformersModel
from small_parts import make_llama, make_tokenizer
from word_bank import PASSAGES, QUESTIONS, ask, build_and_warm

ASKED = [f"{q} please" for q in QUESTIONS]


@pytest.fixture
def sharing() -> TransformersModel:
    llama = make_llama()
    use_shared_kv_heads(llama)
    return wrap_model(llama, make_tokenizer())


@pytest.fixture
def engine(open_engine: Callable[..., Engine], sharing: TransformersModel) -> Engine:
    return open_engine(model=sharing)


def prompt(number: int) -> str:
    return f"Answer from the context.\n\n{PASSAGES['card']}\n\nQuestion: {QUESTIONS[number]}"


@pytest.mark.parametrize("drafts", [True, False])
def test_answers_at_once_are_those_without_reuse(
    open_engine: Callable[..., Engine], sharing: TransformersModel, drafts: bool
) -> None:
    engine = open_engine(model=sharing, drafts=drafts)
    build_and_warm(engine)
    alone = [ask(engine, q, reuse="off").token_ids for q in ASKED]
    for _ in range(2):  # the second time every answer is known as a draft
        with ThreadPoolExecutor(len(ASKED)) as pool:
            done = list(pool.map(lambda q: ask(engine, q), ASKED))
        assert [d.token_ids for d in done] == alone
        assert all(d.usage.outcome == "hit" for d in done)
        engine.flush()
    assert max(sharing.batcher.sizes) > 1 and sharing.arenas.num_borrowed > 0
    assert sharing.arenas.num_bytes == 0
    assert engine.check().is_clean


def test_what_is_learnt_from_a_borrowed_prefix_is_sound(
    open_engine: Callable[..., Engine], sharing: TransformersModel
) -> None:
    engine = open_engine(model=sharing)
    with ThreadPoolExecutor(9) as pool:
        first = list(pool.map(lambda n: engine.generate(prompt(n), max_tokens=8), range(9)))
    assert sharing.arenas.num_borrowed > 0 and engine.check().is_clean
    engine.close()
    again = open_engine(model=sharing)
    for number, done in enumerate(first):
        warm = again.generate(prompt(number), max_tokens=8)
        assert warm.token_ids == done.token_ids and warm.usage.reused_tokens > 200


def test_tenants_share_forwards_and_no_prefix(engine: Engine, sharing: TransformersModel) -> None:
    tenants = [engine.for_tenant(name) for name in ("one", "two", "three")]
    alone = engine.generate(prompt(0), max_tokens=40, reuse="off").token_ids
    with ThreadPoolExecutor(3) as pool:
        done = list(pool.map(lambda e: e.generate(prompt(0), max_tokens=40), tenants))
    assert [d.token_ids for d in done] == [alone] * 3
    assert [d.usage.reused_tokens for d in done] == [0] * 3
    assert max(sharing.batcher.sizes) > 1 and sharing.arenas.num_borrowed == 0


def test_a_timeout_in_one_request_leaves_the_others_whole(engine: Engine) -> None:
    alone = [engine.generate(prompt(n), max_tokens=40, reuse="off").token_ids for n in range(9)]

    def late() -> None:
        with pytest.raises(GenerationTimeout):
            engine.generate(prompt(0), max_tokens=400, timeout_s=0.02)

    with ThreadPoolExecutor(12) as pool:
        failing = [pool.submit(late) for _ in range(3)]
        running = [pool.submit(engine.generate, prompt(n), max_tokens=40) for n in range(9)]
        assert [r.result().token_ids for r in running] == alone
        for one in failing:
            one.result()
    assert engine.store.requests.num_running == 0


async def test_more_streams_than_threads_come_to_their_ends(
    open_engine: Callable[..., Engine], sharing: TransformersModel
) -> None:
    """Steps of streams that wait for a place must not take the threads of those that have one."""
    engine = open_engine(model=sharing, max_running=2)
    asyncio.get_running_loop().set_default_executor(ThreadPoolExecutor(3))
    alone = [engine.generate(prompt(n), max_tokens=6, reuse="off").text for n in range(9)]

    async def read(number: int) -> str:
        stream = iterate(engine.stream(prompt(number), max_tokens=6))
        return "".join([chunk.text async for chunk in stream])

    assert await asyncio.gather(*map(read, range(9))) == alone
