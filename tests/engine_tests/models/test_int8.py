"""Linear layers in int8: close to what they stand for, exact reuse, a fingerprint of their own."""

from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from centroidkv import Engine
from centroidkv.config import Sampling
from centroidkv.errors import UnsupportedModel
from centroidkv.models.int8 import Int8Linear, is_int8, use_int8
from centroidkv.models.loading import load_model, wrap_model
from centroidkv.types import Drafts
from model_families import FAMILIES, Family, make_model
from small_parts import HashEmbedder, make_llama, make_tokenizer

ROOM = 256
SOME = [f for f in FAMILIES if f.name in {"Llama", "Qwen 2, 2.5", "Gemma 2", "Mistral", "GPT-OSS"}]


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("CENTROIDKV_CACHE", str(tmp_path / "cache"))
    folder = tmp_path / "model"
    make_llama().save_pretrained(folder)
    make_tokenizer().save_pretrained(folder)
    return folder


@given(
    rows=st.integers(1, 70),
    inner=st.integers(2, 200),
    outer=st.integers(1, 90),
    seed=st.integers(0, 9),
)
@settings(max_examples=25, deadline=None)
def test_a_row_does_not_depend_on_its_neighbours(
    rows: int, inner: int, outer: int, seed: int
) -> None:
    random = torch.Generator().manual_seed(seed)
    linear = torch.nn.Linear(inner, outer)
    states = torch.randn(rows, inner, generator=random) * 10 ** torch.randn(
        rows, 1, generator=random
    )
    with torch.inference_mode():
        packed = Int8Linear(linear)
        together = packed(states[None])[0]
        apart = torch.cat([packed(row[None]) for row in states])
        assert torch.equal(together, apart)
        # Half a step of each of the two scales, summed up without luck.
        weights, bound = linear.weight.abs().amax(1), states.abs().amax(1, keepdim=True)
        worst = inner * bound * weights * (1 / 127 + 1 / 127**2)
        assert ((together - linear(states)).abs() <= worst + 1e-5).all()


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_zeros_and_dtypes_go_through(dtype: torch.dtype) -> None:
    packed = Int8Linear(torch.nn.Linear(8, 4, dtype=dtype))
    output = packed(torch.zeros(2, 3, 8, dtype=dtype))
    assert output.dtype == dtype and output.shape == (2, 3, 4)
    torch.testing.assert_close(output, packed.bias.expand(2, 3, 4))


@pytest.mark.parametrize("family", SOME, ids=lambda f: f.name)
def test_kv_put_back_continues_the_same(family: Family) -> None:
    model = make_model(family)
    use_int8(model)
    assert is_int8(model)
    opened = wrap_model(model, make_tokenizer())
    ids = torch.randint(0, 256, (130,), generator=torch.Generator().manual_seed(1)).tolist()
    cold = opened.open_sequence(ROOM)
    cold.prefill(ids)
    expected = [t.id for t in cold.decode(Sampling(max_tokens=12))]
    for cut in (1, 40, 64, 129):
        warm = opened.open_sequence(ROOM)
        warm.restore([cold.snapshot(0, cut)])
        warm.prefill(ids[cut:], Drafts(prompt=tuple(ids), repeat=tuple(expected)))
        assert [t.id for t in warm.decode(Sampling(max_tokens=12))] == expected
        warm.close()
    cold.close()


def test_an_engine_takes_it_as_a_setting_and_reuses_exactly(folder: Path, tmp_path: Path) -> None:
    context = "Lost cards are blocked by phone, at any hour. " * 4

    def ask(engine: Engine, question: str, **options: str):
        return engine.generate(f"{context}Question: {question}", max_tokens=8, **options)

    def opened(quantization: str | None) -> Engine:
        return Engine.open(
            tmp_path / "store",
            model=str(folder),
            embedder=HashEmbedder(),
            quantization=quantization,
        )

    with opened("int8") as engine:
        assert ask(engine, "how do I block it?").usage.outcome == "miss"
        for question in ("is there a fee?", "when does it come?"):
            warm = ask(engine, question)
            assert warm.usage.outcome == "hit"
            assert warm.token_ids == ask(engine, question, reuse="off").token_ids
        assert engine.check().is_clean
    with opened("int8") as engine:
        restored = ask(engine, "who pays?")
        assert (restored.usage.outcome, restored.usage.tier) == ("hit", "disk")
        assert restored.token_ids == ask(engine, "who pays?", reuse="off").token_ids
    with opened(None) as engine:
        assert ask(engine, "how do I block it?").usage.outcome == "miss", "another model's KV"


def test_the_fingerprint_tells_int8_from_what_it_stands_for(folder: Path) -> None:
    plain, int8 = load_model(folder), load_model(folder, quantization="int8")
    assert int8.fingerprint != plain.fingerprint
    assert load_model(folder, quantization="int8").fingerprint == int8.fingerprint
    wrapped = [wrap_model(m.model, make_tokenizer()).fingerprint for m in (plain, int8)]
    assert wrapped[0] != wrapped[1]


def test_embeddings_and_narrow_layers_stay_as_they_are() -> None:
    model = make_llama()
    model.model.layers[0].mlp.gate = torch.nn.Linear(64, 4)
    before = model.get_input_embeddings().weight
    use_int8(model)
    assert model.get_input_embeddings().weight is before
    assert type(model.model.layers[0].mlp.gate) is torch.nn.Linear
    assert isinstance(model.lm_head, Int8Linear)


def test_what_int8_is_not_for_is_refused() -> None:
    with pytest.raises(UnsupportedModel, match="does not run on the CPU"):
        use_int8(make_llama().to("meta"))
    gpt2 = make_model(next(f for f in FAMILIES if f.name == "GPT-2"))
    gpt2.lm_head = torch.nn.Identity()
    with pytest.raises(UnsupportedModel, match="no linear layers"):
        use_int8(gpt2)
