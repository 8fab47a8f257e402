"""Under asyncio, nothing that may take long runs on the event loop."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from llama_index.core.llms import ChatMessage

from centroidkv.errors import ConfigError
from centroidkv.llama_index import CentroidKVLLM, CentroidKVPostprocessor
from centroidkv.models.transformers_model import TransformersModel
from event_loop_parts import LoopEngine, caller, open_loop_engine
from llama_index_parts import ASKED, query_engine

WAYS = ["acomplete", "astream_complete", "achat", "astream_chat"]


@pytest.fixture
def engine(tmp_path: Path, model: TransformersModel) -> Iterator[LoopEngine]:
    with open_loop_engine(tmp_path / "store", model) as engine:
        yield engine


async def asked(llm: CentroidKVLLM, way: str, **call: Any) -> None:
    prompt: Any = [ChatMessage(content=ASKED)] if way.endswith("chat") else ASKED
    answer = await getattr(llm, way)(prompt, **call)
    if way.startswith("astream"):
        assert [piece async for piece in answer]


@pytest.mark.parametrize("way", WAYS)
async def test_an_answer_begins_beside_the_loop(engine: LoopEngine, way: str) -> None:
    engine.watch()
    caller.set("me")
    await asked(CentroidKVLLM(engine=engine, max_tokens=2), way)
    assert (engine.beside, engine.holding) == (["stream"], [])
    assert engine.seen == {"me"}, "the context of the call"


@pytest.mark.parametrize("way", WAYS)
async def test_a_tenant_is_opened_beside_the_loop(engine: LoopEngine, way: str) -> None:
    engine.watch()
    await asked(CentroidKVLLM(engine=engine, max_tokens=2), way, tenant="acme")
    assert (engine.beside, engine.holding) == (["for_tenant"], [])
    engine.loop = None
    assert engine.for_tenant("acme").stats().num_blocks > 0


@pytest.mark.parametrize("way", ["astream_complete", "astream_chat"])
async def test_a_wrong_argument_is_named_before_the_stream(engine: LoopEngine, way: str) -> None:
    prompt: Any = [ChatMessage(content=ASKED)] if way.endswith("chat") else ASKED
    with pytest.raises(ConfigError, match="unknown argument"):
        await getattr(CentroidKVLLM(engine=engine), way)(prompt, flavour="sweet")


async def test_a_query_engine_works_beside_the_loop(engine: LoopEngine) -> None:
    engine.watch()
    await query_engine(engine).aquery(ASKED)
    assert (engine.beside, engine.holding) == (["route", "compose", "stream"], [])
    await CentroidKVPostprocessor(engine=engine).apostprocess_nodes([], query_str=ASKED)
    assert engine.holding == []
