"""transformers' own quantisations: loaded as asked, part of the fingerprint, exact reuse."""

import json
import shutil
from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM

from centroidkv import Engine
from centroidkv.config import Sampling
from centroidkv.errors import ConfigError, ModelNotFound
from centroidkv.models.loading import load_model, wrap_model
from centroidkv.models.transformers_model import TransformersModel
from small_parts import HashEmbedder, make_llama, make_tokenizer

# Needs no package besides transformers: ternary weights, activations in int8 row by row.
BITNET = {
    "quant_method": "bitnet",
    "linear_class": "autobitlinear",
    "quantization_mode": "online",
    "modules_to_not_convert": ["lm_head"],
}
# Of torch's own compiler, which transformers' BitNet layers import.
pytestmark = pytest.mark.filterwarnings("ignore:.*torch.jit.script:DeprecationWarning")
TORCHAO = ["Int8WeightOnlyConfig", "Int8DynamicActivationInt8WeightConfig"]


@pytest.fixture(autouse=True)
def _surroundings(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setenv("CENTROIDKV_CACHE", str(tmp_path / "cache"))
    # transformers compiles parts of BitNet, which takes longer than a test may.
    torch.compiler.set_stance("force_eager")
    yield
    torch.compiler.set_stance("default")


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    folder = tmp_path / "model"
    make_llama().save_pretrained(folder)
    make_tokenizer().save_pretrained(folder)
    return folder


def torchao(name: str) -> Any:
    quantization = pytest.importorskip("torchao.quantization")
    from transformers import TorchAoConfig

    return TorchAoConfig(getattr(quantization, name)())


def answers_the_same_behind_restored_kv(model: TransformersModel) -> bool:
    ids = torch.randint(0, 94, (150,), generator=torch.Generator().manual_seed(1)).tolist()
    cold = model.open_sequence(200)
    cold.prefill(ids)
    expected = [t.id for t in cold.decode(Sampling(max_tokens=12))]
    for cut in (1, 64, 149):
        warm = model.open_sequence(200)
        warm.restore([cold.snapshot(0, cut)])
        warm.prefill(ids[cut:])
        if [t.id for t in warm.decode(Sampling(max_tokens=12))] != expected:
            return False
    return True


@pytest.fixture
def quantised(folder: Path, tmp_path: Path) -> Path:
    """The same weights, in a folder whose config says how they are quantised."""
    target = tmp_path / "quantised"
    shutil.copytree(folder, target)
    config = json.loads((target / "config.json").read_text("utf-8"))
    config["quantization_config"] = BITNET
    (target / "config.json").write_text(json.dumps(config), "utf-8")
    return target


def test_a_folder_that_was_saved_quantised_is_loaded_so(folder: Path, quantised: Path) -> None:
    plain, loaded = load_model(folder), load_model(quantised)
    assert type(loaded.model.model.layers[0].mlp.up_proj).__name__ == "AutoBitLinear"
    ids = torch.arange(20)[None]
    assert not torch.allclose(plain.model(ids).logits, loaded.model(ids).logits, atol=1e-3)
    assert loaded.fingerprint != plain.fingerprint
    wrapped = [wrap_model(m.model, make_tokenizer()).fingerprint for m in (plain, loaded)]
    assert wrapped[0] != wrapped[1]
    assert answers_the_same_behind_restored_kv(loaded)


def test_an_engine_opens_it_and_reuses_exactly(
    folder: Path, quantised: Path, tmp_path: Path
) -> None:
    context = "Lost cards are blocked by phone, at any hour. " * 4

    def ask(engine: Engine, question: str, **options: str):
        return engine.generate(f"{context}Question: {question}", max_tokens=8, **options)

    store = tmp_path / "store"
    with Engine.open(store, model=str(quantised), embedder=HashEmbedder()) as engine:
        assert ask(engine, "how do I block it?").usage.outcome == "miss"
        warm = ask(engine, "is there a fee?")
        assert warm.usage.outcome == "hit"
        assert warm.token_ids == ask(engine, "is there a fee?", reuse="off").token_ids
    with Engine.open(store, model=str(folder), embedder=HashEmbedder()) as engine:
        assert ask(engine, "how do I block it?").usage.outcome == "miss", "another model's KV"


@pytest.mark.parametrize("name", TORCHAO)
def test_torchao_reuses_exactly(folder: Path, name: str) -> None:
    model = load_model(folder, quantization=torchao(name))
    assert type(model.model.model.layers[0].mlp.up_proj.weight).__module__.startswith("torchao")
    assert model.fingerprint != load_model(folder).fingerprint
    fields = torchao(name).to_dict()
    assert load_model(folder, quantization=fields).fingerprint == model.fingerprint
    assert answers_the_same_behind_restored_kv(model)


@pytest.mark.parametrize("name", TORCHAO)
def test_a_model_that_was_quantised_before_has_a_fingerprint_of_its_weights(
    folder: Path, name: str
) -> None:
    def opened() -> TransformersModel:
        model = AutoModelForCausalLM.from_pretrained(folder, quantization_config=torchao(name))
        return wrap_model(model, make_tokenizer())

    assert opened().fingerprint == opened().fingerprint
    make_llama(seed=1).save_pretrained(folder)
    before = opened().fingerprint
    make_llama(seed=2).save_pretrained(folder)
    assert opened().fingerprint != before


@pytest.mark.skipif(find_spec("bitsandbytes") is not None, reason="bitsandbytes is installed")
def test_a_missing_package_is_named(folder: Path) -> None:
    with pytest.raises(ModelNotFound, match="bitsandbytes"):
        load_model(folder, quantization={"load_in_8bit": True})


def test_what_is_no_quantisation_is_refused(folder: Path, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="quantization must be 'int8', one of"):
        Engine.open(tmp_path / "store", model=str(folder), quantization=8)
    with pytest.raises(ModelNotFound, match="quant_method"):
        load_model(folder, quantization={"bits": 8})
    file = tmp_path / "model.gguf"
    file.write_bytes(b"GGUF")
    with pytest.raises(ConfigError, match=r"not for a \.gguf file"):
        load_model(file, quantization=BITNET)


def test_a_loaded_model_is_not_quantised_behind_its_owners_back(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="loaded by name"):
        Engine.open(
            tmp_path / "store", model=make_llama(), tokenizer=make_tokenizer(), quantization=BITNET
        )
