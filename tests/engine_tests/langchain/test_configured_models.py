"""Models that opened an engine for themselves, copied by LangChain for the settings of a call."""

import copy
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from langchain_core.load import dumpd
from langchain_core.runnables import ConfigurableField
from pydantic import BaseModel, ValidationError

from centroidkv import Engine
from centroidkv.langchain import CentroidKVLLM, ChatCentroidKV
from own_engine_parts import opened
from small_parts import make_llama, make_tokenizer

__all__ = ["opened"]

KINDS = [CentroidKVLLM, ChatCentroidKV]
LONGEST = ConfigurableField(id="longest")

Own = Callable[..., Any]


@pytest.fixture(scope="module")
def model_folder(tmp_path_factory) -> str:
    folder = tmp_path_factory.mktemp("model")
    make_llama().save_pretrained(folder)
    make_tokenizer().save_pretrained(folder)
    return str(folder)


@pytest.fixture
def own(tmp_path: Path, model_folder: str, opened: list[Engine]) -> Own:
    """Make models that open an engine of their own."""

    def make(kind: type, **options: Any) -> Any:
        settings = {"model": model_folder, "store": str(tmp_path / "store"), "max_tokens": 12}
        return kind(**{**settings, **options})

    return make


def length(answer: Any) -> int:
    return answer.usage_metadata["output_tokens"]


@pytest.mark.parametrize("kind", KINDS)
def test_what_is_configured_for_a_call_opens_no_engine(
    own: Own, opened: list[Engine], kind: type
) -> None:
    model = own(kind)
    configured = model.configurable_fields(max_tokens=LONGEST)
    for longest in (3, 5, 4):
        configured.invoke("hello there", {"configurable": {"longest": longest}})
    configured.with_config(configurable={"longest": 4}).invoke("hello there")
    configured.batch(["one", "two"], {"configurable": {"longest": 2}})
    assert opened == [model.kv]
    assert model.kv.stats().counters["requests"] == 6


def test_what_is_configured_holds_for_its_call_alone(own: Own) -> None:
    configured = own(ChatCentroidKV).configurable_fields(max_tokens=LONGEST)
    assert length(configured.invoke("hello", {"configurable": {"longest": 5}})) == 5
    assert length(configured.invoke("hello")) == 12


def test_bound_alternative_and_copied_models_share_the_engine(
    own: Own, opened: list[Engine]
) -> None:
    class Holder(BaseModel):
        chat: ChatCentroidKV

    model = own(ChatCentroidKV)
    bound = model.bind(max_tokens=3)
    which = model.configurable_alternatives(ConfigurableField(id="which"), short=bound)
    assert length(which.invoke("hello", {"configurable": {"which": "short"}})) == 3
    assert length(model.with_config(tags=["t"]).invoke("hello")) == 12
    assert Holder(chat=model).chat.kv is model.kv
    assert ChatCentroidKV.model_validate(model).kv is model.kv
    assert copy.copy(model).kv is model.model_copy().kv is model.kv
    assert opened == [model.kv]


@pytest.mark.parametrize("kind", KINDS)
def test_another_store_for_a_call_is_refused(
    own: Own, opened: list[Engine], tmp_path: Path, kind: type
) -> None:
    configured = own(kind).configurable_fields(store=ConfigurableField(id="where"))
    with pytest.raises(ValidationError, match=r"one call.*configurable_alternatives"):
        configured.invoke("hello", {"configurable": {"where": str(tmp_path / "elsewhere")}})
    assert len(opened) == 1


@pytest.mark.parametrize("kind", KINDS)
def test_an_engine_beside_a_store_is_refused_as_before(
    own: Own, engine: Engine, kind: type
) -> None:
    with pytest.raises(ValidationError, match=r"either engine=... or model=... and store=..."):
        own(kind, engine=engine)


@pytest.mark.parametrize("kind", KINDS)
def test_what_is_written_down_of_a_model_with_its_own_engine_holds_none(
    own: Own, kind: type
) -> None:
    model = own(kind)
    configured = model.configurable_fields(max_tokens=LONGEST)
    said = f"{model!r} {model.model_dump()} {json.dumps(dumpd(model))} {configured!r}"
    assert "Engine" not in said
    assert "engine" not in model.model_dump()
    same = kind(engine=model.kv, max_tokens=12)
    assert model.identity() == same.identity()


@pytest.mark.parametrize("kind", KINDS)
def test_a_closed_engine_is_closed_for_what_is_configured_too(own: Own, kind: type) -> None:
    model = own(kind)
    model.kv.close()
    configured = model.configurable_fields(max_tokens=LONGEST)
    with pytest.raises(Exception, match="the engine is closed"):
        configured.invoke("hello", {"configurable": {"longest": 2}})


@pytest.mark.parametrize("kind", KINDS)
def test_traces_are_told_the_versions_of_langchain(engine: Engine, kind: type) -> None:
    """LangChain notes them when a model is made, which private attributes of ours kept it from."""
    assert "langchain-core" in kind(engine=engine).metadata["lc_versions"]
