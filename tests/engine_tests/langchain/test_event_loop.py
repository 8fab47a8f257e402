"""Under asyncio, nothing that may take long runs on the event loop."""

import asyncio
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from centroidkv.langchain import CentroidKVLLM, ChatCentroidKV
from centroidkv.models.transformers_model import TransformersModel
from event_loop_parts import LoopEngine, caller, open_loop_engine
from langchain_parts import ASKED, build_and_warm, chat_chain, pinned, usage_of

KINDS = [CentroidKVLLM, ChatCentroidKV]
ACME = {"metadata": {"centroidkv_tenant": "acme"}}


@pytest.fixture
def engine(tmp_path: Path, model: TransformersModel) -> Iterator[LoopEngine]:
    with open_loop_engine(tmp_path / "store", model) as engine:
        yield engine


async def asked(model: Any, way: str, **call: Any) -> None:
    if way == "ainvoke":
        await model.ainvoke(ASKED, **call)
    elif way == "abatch":
        await model.abatch([ASKED], **call)
    else:
        assert [c async for c in model.astream(ASKED, **call)]


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("way", ["ainvoke", "abatch", "astream"])
async def test_an_answer_begins_beside_the_loop(engine: LoopEngine, kind: type, way: str) -> None:
    engine.watch()
    caller.set("me")
    await asked(kind(engine=engine, max_tokens=2), way)
    assert (engine.beside, engine.holding) == (["stream"], [])
    assert engine.seen == {"me"}, "the context of the call"


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("way", ["ainvoke", "abatch", "astream"])
@pytest.mark.parametrize("call", [{"config": ACME}, {"tenant": "acme"}])
async def test_a_tenant_is_opened_beside_the_loop(
    engine: LoopEngine, kind: type, way: str, call: dict[str, Any]
) -> None:
    engine.watch()
    caller.set("me")
    await asked(kind(engine=engine, max_tokens=2), way, **call)
    assert set(engine.beside) == {"for_tenant"} and engine.holding == []
    assert engine.seen == {"me"}
    engine.loop = None
    assert engine.for_tenant("acme").stats().num_blocks > 0


async def test_the_retriever_works_beside_the_loop(engine: LoopEngine) -> None:
    engine.watch()
    caller.set("me")
    await pinned(engine).ainvoke(ASKED)
    assert (engine.beside, engine.holding) == (["route", "compose"], [])
    await pinned(engine).ainvoke(ASKED, ACME)
    assert (engine.beside[2:], engine.holding) == (["for_tenant"], [])
    assert engine.seen == {"me"}


async def test_a_chain_hits_beside_the_loop(engine: LoopEngine) -> None:
    chain = chat_chain(engine)
    build_and_warm(engine, chain.invoke)
    before = chain.invoke(ASKED)
    engine.watch()
    answer = await chain.ainvoke(ASKED)
    assert (usage_of(answer)["outcome"], answer.content) == ("hit", before.content)
    assert (engine.beside, engine.holding) == (["route", "compose", "stream"], [])


@pytest.mark.parametrize("kind", KINDS)
async def test_a_call_cancelled_while_it_begins_answers_nothing_more(
    engine: LoopEngine, kind: type
) -> None:
    engine.watch()
    model = kind(engine=engine, max_tokens=64)
    task = asyncio.create_task(model.ainvoke(ASKED))
    while not engine.seen:
        await asyncio.sleep(0)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    engine.loop = None
    assert await model.ainvoke(ASKED, max_tokens=2)
    assert engine.check().is_clean
