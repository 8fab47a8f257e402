"""Parts of a model on several devices: KV goes back to where its layer runs."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from centroidkv import Engine
from centroidkv.config import Sampling
from centroidkv.errors import ConfigError
from centroidkv.models.arena import Arena
from centroidkv.models.layer_memory import KVShape, LayerShape
from centroidkv.models.loading import load_model, wrap_model
from centroidkv.types import KVBlock
from small_parts import make_llama, make_tokenizer

CPU = torch.device("cpu")
# Another device to whoever compares them, and the same memory.
OTHER = torch.device("cpu", 0)
ON_DISK = {
    "model.embed_tokens": "cpu",
    "model.layers.0": "cpu",
    "model.layers.1": "disk",
    "model.norm": "cpu",
    "model.rotary_emb": "cpu",
    "lm_head": "cpu",
}


@pytest.fixture(autouse=True)
def _cache_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CENTROIDKV_CACHE", str(tmp_path / "cache"))


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    folder = tmp_path / "model"
    make_llama().save_pretrained(folder)
    make_tokenizer().save_pretrained(folder)
    return folder


@pytest.mark.parametrize("device_map", ["cpu", {"": "cpu"}, ON_DISK], ids=["word", "all", "disk"])
def test_a_placed_model_answers_as_one_that_is_not(folder: Path, device_map: Any) -> None:
    plain, placed = load_model(folder), load_model(folder, device_map=device_map)
    assert placed.fingerprint == plain.fingerprint, "where it runs does not shape KV"
    ids = torch.randint(0, 94, (100,), generator=torch.Generator().manual_seed(1)).tolist()
    cold, warm = plain.open_sequence(200), placed.open_sequence(200)
    cold.prefill(ids)
    warm.restore([cold.snapshot(0, 64)])
    warm.prefill(ids[64:])
    ours, theirs = ([t.id for t in s.decode(Sampling(max_tokens=12))] for s in (warm, cold))
    assert ours == theirs


def test_weights_on_disk_count_in_the_fingerprint(folder: Path) -> None:
    placed, plain = load_model(folder, device_map=ON_DISK), load_model(folder)
    assert placed.model.model.layers[1].mlp.up_proj.weight.is_meta
    wrapped = [wrap_model(m.model, make_tokenizer()).fingerprint for m in (placed, plain)]
    assert wrapped[0] == wrapped[1]


@pytest.mark.parametrize(
    ("layers", "block"),
    [
        ([LayerShape(2, 4, 6, CPU), LayerShape(2, 4, 6, OTHER)], ((2, 2, 9, 4), (2, 2, 9, 6))),
        (
            [LayerShape(2, 4, 6, CPU), None, LayerShape(1, 8, 2, OTHER, window=5)],
            ((1, 1, 9, 16), (1, 1, 9, 14)),
        ),
    ],
    ids=["two devices", "two shapes and a gap"],
)
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_kv_goes_back_to_the_layer_that_it_came_from(
    layers: list[LayerShape | None], block: tuple[tuple[int, ...], ...], dtype: str
) -> None:
    shape = KVShape.of(layers, getattr(torch, dtype))
    one, two = Arena(shape, 256), Arena(shape, 256)
    assert not shape.is_stacked
    assert shape.bytes_per_token * 9 == sum(
        int(np.prod(sizes)) * shape.dtype.itemsize for sizes in block
    )
    written = []
    for index, layer in enumerate(layers):
        if layer is None:
            continue
        keys = torch.randn(1, layer.kv_heads, 9, layer.key_dim).to(shape.dtype)
        values = torch.randn(1, layer.kv_heads, 9, layer.value_dim).to(shape.dtype)
        one.cache.update(keys, values, index)
        written.append((index, keys, values))
    taken = one.snapshot(0, 9)
    assert (taken.keys.shape, taken.values.shape) == block
    two.append(taken.part(0, 4))
    two.append(taken.part(4, 9))
    for index, keys, values in written:
        layer = two.cache.layers[index]
        assert torch.equal(layer.keys[:, :, :9], keys)
        assert torch.equal(layer.values[:, :, :9], values)
    again = two.snapshot(2, 7)
    assert isinstance(again, KVBlock)
    np.testing.assert_array_equal(again.keys, taken.keys[:, :, 2:7])


def test_device_and_device_map_exclude_each_other(folder: Path, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="device and device_map exclude each other"):
        Engine.open(tmp_path / "store", model=str(folder), device="cpu", device_map="cpu")
    with pytest.raises(ConfigError, match="device_map must be"):
        Engine.open(tmp_path / "store", model=str(folder), device_map=3)
