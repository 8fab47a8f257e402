"""A timeout ends the answer with an error; what was computed until then is kept."""

import asyncio

import pytest

from centroidkv import Engine
from centroidkv.errors import CentroidKVError, ConfigError, GenerationTimeout
from centroidkv.langchain import CentroidKVLLM, ChatCentroidKV
from centroidkv.llama_index import CentroidKVLLM as LlamaIndexLLM

TEXT = "A savings account at Harbour Bank has no monthly fee and pays two percent. " * 3
SOON = 1e-6


def test_it_is_an_error_of_ours_and_a_timeout_error(engine: Engine) -> None:
    with pytest.raises(GenerationTimeout, match="within timeout=1e-06 seconds, 1 tokens") as caught:
        engine.generate(TEXT, max_tokens=8, timeout_s=SOON)
    assert isinstance(caught.value, TimeoutError)
    assert isinstance(caught.value, CentroidKVError)
    assert caught.value.num_tokens == 1


def test_the_kv_computed_until_then_is_kept(engine: Engine) -> None:
    with pytest.raises(GenerationTimeout):
        engine.generate(TEXT, max_tokens=8, timeout_s=SOON)
    engine.flush()
    assert engine.generate(TEXT, max_tokens=8).usage.reused_tokens > 100
    assert engine.check().is_clean


def test_an_answer_in_time_is_complete(engine: Engine) -> None:
    assert engine.generate(TEXT, max_tokens=1, timeout_s=SOON).text
    free = engine.generate(TEXT, max_tokens=8)
    assert engine.generate(TEXT, max_tokens=8, timeout_s=60).token_ids == free.token_ids


def test_the_pieces_decoded_in_time_arrive(engine: Engine) -> None:
    pieces: list[str] = []
    with pytest.raises(GenerationTimeout):
        pieces.extend(c.text for c in engine.stream(TEXT, max_tokens=64, timeout_s=SOON))
    assert "".join(pieces)


@pytest.mark.parametrize("make", [CentroidKVLLM, ChatCentroidKV])
def test_langchain_models_take_it_as_field_and_argument(engine: Engine, make: type) -> None:
    with pytest.raises(GenerationTimeout):
        make(engine=engine, timeout=SOON).invoke(TEXT)
    with pytest.raises(GenerationTimeout):
        list(make(engine=engine).stream(TEXT, timeout=SOON))
    with pytest.raises(GenerationTimeout):
        asyncio.run(make(engine=engine).ainvoke(TEXT, timeout=SOON))
    slow = make(engine=engine, max_tokens=4, timeout=SOON)
    assert slow.with_fallbacks([make(engine=engine, max_tokens=4)]).invoke(TEXT)


def test_llama_index_takes_it_as_field_and_argument(engine: Engine) -> None:
    with pytest.raises(GenerationTimeout):
        LlamaIndexLLM(engine=engine, timeout=SOON).complete(TEXT)
    with pytest.raises(GenerationTimeout):
        LlamaIndexLLM(engine=engine).complete(TEXT, timeout=SOON)


@pytest.mark.parametrize("wrong", [0, -1, "10", True])
def test_it_is_a_number_of_seconds(engine: Engine, wrong: object) -> None:
    with pytest.raises(ConfigError, match="timeout must be a number of seconds above 0"):
        engine.generate("hi", timeout_s=wrong)  # type: ignore[arg-type]
