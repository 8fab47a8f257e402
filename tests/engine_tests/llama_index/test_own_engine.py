"""Models that opened an engine for themselves, copied and handed on within LlamaIndex."""

from pathlib import Path

import pytest
from llama_index.core import Settings
from llama_index.core.bridge.pydantic import BaseModel

from centroidkv import Engine
from centroidkv.llama_index import CentroidKVLLM
from own_engine_parts import opened
from small_parts import make_llama, make_tokenizer

__all__ = ["opened"]


@pytest.fixture
def llm(tmp_path: Path, opened: list[Engine]) -> CentroidKVLLM:
    make_llama().save_pretrained(tmp_path / "model")
    make_tokenizer().save_pretrained(tmp_path / "model")
    return CentroidKVLLM(model=str(tmp_path / "model"), store=str(tmp_path / "store"), max_tokens=4)


def test_copies_share_the_engine(
    llm: CentroidKVLLM, opened: list[Engine], monkeypatch: pytest.MonkeyPatch
) -> None:
    class Holder(BaseModel):
        llm: CentroidKVLLM

    monkeypatch.setattr(Settings, "_llm", None)
    Settings.llm = llm
    fields = {name: getattr(llm, name) for name in CentroidKVLLM.model_fields}
    copies = [
        Settings.llm,
        Holder(llm=llm).llm,
        llm.model_copy(),
        llm.model_copy(update={"max_tokens": 2}),
        CentroidKVLLM.model_validate(llm),
        CentroidKVLLM(**{**fields, "max_tokens": 2}),
    ]
    for copied in copies:
        assert copied.kv is llm.kv
        copied.complete("hello there")
    assert opened == [llm.kv]
    assert "engine" not in llm.to_dict() and "Engine" not in repr(llm)
