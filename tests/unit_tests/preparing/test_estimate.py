"""A store's size and its break-evens, from what a config says."""

from dataclasses import replace
from pathlib import Path

import pytest
from transformers import (
    DeepseekV3Config,
    Gemma2Config,
    LlamaConfig,
    PretrainedConfig,
    PreTrainedTokenizerFast,
)

from centroidkv.errors import ConfigError, ModelNotFound
from centroidkv.models.kv_size import KVSize, kv_size
from centroidkv.models.loading import wrap_model
from centroidkv.models.transformers_model import TransformersModel
from centroidkv.precision.codec_report import CodecReport, LevelFigures
from centroidkv.preparing.estimate import estimate, estimate_model, measured_prefill, report_on
from small_parts import make_llama

SIZE = KVSize(num_numbers=1000, num_bytes=4000, dtype="float32")


@pytest.mark.parametrize(
    ("config", "numbers"),
    [
        (LlamaConfig(num_hidden_layers=3, num_key_value_heads=2, head_dim=16), 2 * 3 * 2 * 16),
        (Gemma2Config(num_hidden_layers=4, num_key_value_heads=1, head_dim=8), 2 * 4 * 8),
        (DeepseekV3Config(), None),  # latent KV: the config alone does not tell
    ],
)
def test_the_size_is_read_off_the_config(
    config: PretrainedConfig, numbers: int | None, tmp_path: Path
) -> None:
    config.save_pretrained(tmp_path)
    expected = numbers and KVSize(numbers, 2 * numbers, "bfloat16")
    assert kv_size(tmp_path, dtype="bfloat16") == expected


def test_it_is_that_of_the_loaded_model(
    model: TransformersModel, tokenizer: PreTrainedTokenizerFast, tmp_path: Path
) -> None:
    llama = make_llama()
    llama.save_pretrained(tmp_path)
    tokenizer.save_pretrained(tmp_path)
    found = kv_size(tmp_path)
    assert found is not None
    assert (
        found.num_bytes
        == model.shape.bytes_per_token
        == wrap_model(llama, tokenizer).shape.bytes_per_token
    )
    whole = estimate_model(str(tmp_path), num_clusters=2, num_tokens=64, measure=True)
    assert [p.num_tokens for p in whole.prefill] == [64, 64]
    assert whole.prefill_tokens_per_s == whole.prefill[-1].tokens_per_s > 0


def test_break_evens_follow_from_speed_size_and_latency() -> None:
    found = estimate(SIZE, num_clusters=10, num_tokens=1000, prefill_tokens_per_s=1000)
    raw = found.levels[0]
    assert (raw.level, raw.store_bytes, found.sizes_are) == ("raw", 40_000_000, "typical")
    assert raw.saved_s_per_gb == pytest.approx(250)
    assert raw.break_even is not None
    assert raw.break_even["memory"] == pytest.approx(4e6)
    assert raw.break_even["disk"] == pytest.approx(4e6 / 0.999)
    short = estimate(SIZE, num_clusters=1, num_tokens=10, prefill_tokens_per_s=1000).levels[0]
    assert short.break_even is not None
    assert short.break_even["remote"] is None  # its first byte comes after the prefill
    assert estimate(SIZE, num_clusters=1, num_tokens=10).levels[0].break_even is None


def test_a_report_is_on_kv_of_its_own_dtype() -> None:
    raw = LevelFigures("raw", 4020.0, 0.5, 1.0, 0.0, 0.0, 0.0, 0.0, 1.0, 1.0, is_approved=True)
    report = CodecReport("m", "c", 0.01, 1, 1, 1, SIZE.num_numbers, (raw,))
    assert report_on(SIZE, [report]) is report
    assert report_on(replace(SIZE, num_bytes=2000, dtype="bfloat16"), [report]) is None
    assert report_on(replace(SIZE, num_bytes=8000, dtype="float64"), [report]) is None


def test_wrong_numbers_and_models_are_said(tmp_path: Path, model: TransformersModel) -> None:
    for wrong in ({"num_clusters": 0}, {"num_tokens": -1}, {"prefill_tokens_per_s": 0}):
        with pytest.raises(ConfigError):
            estimate(SIZE, **{"num_clusters": 1, "num_tokens": 1, **wrong})  # type: ignore[arg-type]
    with pytest.raises(ModelNotFound):
        kv_size(tmp_path / "nothing")
    with pytest.raises(ModelNotFound):
        kv_size(tmp_path)
    LlamaConfig().save_pretrained(tmp_path)
    for dtype in ("float23", "nn"):
        with pytest.raises(ConfigError, match=dtype):
            kv_size(tmp_path, dtype=dtype)
    assert measured_prefill(model, 300)[0].num_tokens == 256
