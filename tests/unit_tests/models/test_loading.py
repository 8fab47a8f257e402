"""Fingerprints come from what shapes KV, and what cannot be loaded is named."""

import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from transformers import LlamaForCausalLM, PreTrainedTokenizerFast

from centroidkv.errors import ConfigError, ModelError, ModelNotFound, UnsupportedModel
from centroidkv.models.loading import _files_digest, load_model, wrap_model
from small_parts import make_llama, make_tokenizer


def digest(
    *,
    change: Callable[[LlamaForCausalLM, PreTrainedTokenizerFast], None] | None = None,
    seed: int = 0,
    dtype: torch.dtype = torch.float32,
) -> str:
    model, tokenizer = make_llama(seed=seed).to(dtype), make_tokenizer()
    if change is not None:
        change(model, tokenizer)
    return wrap_model(model, tokenizer).fingerprint


def one_weight(model, tokenizer) -> None:
    with torch.no_grad():
        model.model.layers[1].self_attn.v_proj.weight[3, 5] += 1e-3


def the_template(model, tokenizer) -> None:
    tokenizer.chat_template += " "


def the_rope(model, tokenizer) -> None:
    model.config.rope_parameters = {**model.config.rope_parameters, "rope_theta": 5e5}


def the_vocabulary(model, tokenizer) -> None:
    tokenizer.add_tokens(["<|new|>"])


def the_kernel(model, tokenizer) -> None:
    model.set_attn_implementation("eager")


# wrapped models


def test_equal_weights_have_equal_fingerprints() -> None:
    one = digest()
    assert one == digest() and len(one) == 64
    assert int(one, 16)


@pytest.mark.parametrize("change", [one_weight, the_template, the_rope, the_vocabulary, the_kernel])
def test_whatever_shapes_kv_changes_the_fingerprint(change) -> None:
    assert digest(change=change) != digest()


def test_dtype_and_weights_change_the_fingerprint() -> None:
    prints = {digest(), digest(seed=1), digest(dtype=torch.bfloat16), digest(dtype=torch.float16)}
    assert len(prints) == 4


def test_where_a_model_came_from_does_not_change_the_fingerprint() -> None:
    def renamed(model, tokenizer) -> None:
        model.config._name_or_path = "/somewhere/else"
        tokenizer.name_or_path = "/somewhere/else"

    assert digest(change=renamed) == digest()


def test_what_the_tokenizer_did_before_does_not_change_the_fingerprint() -> None:
    def used(model, tokenizer) -> None:
        tokenizer.pad_token = "<|end|>"
        tokenizer(["a", "bcd"], padding=True, truncation=True, max_length=5)

    def named_only(model, tokenizer) -> None:
        tokenizer.pad_token = "<|end|>"

    assert digest(change=used) == digest(change=named_only)


def test_a_wrapped_model_gives_the_same_logits_as_before(tokenizer) -> None:
    model, ids = make_llama().eval(), torch.arange(20)[None]
    before = model(ids).logits
    wrap_model(model, tokenizer)
    assert torch.equal(model(ids).logits, before)


def test_a_model_without_its_tokenizer_is_refused() -> None:
    with pytest.raises(ConfigError, match="tokenizer"):
        wrap_model(make_llama(), None)


# folders


@pytest.fixture(autouse=True)
def cache_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("CENTROIDKV_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    folder = tmp_path / "model"
    make_llama().save_pretrained(folder)
    make_tokenizer().save_pretrained(folder)
    return folder


def test_a_folder_is_loaded_and_answers_as_the_model_it_was_saved_from(folder: Path) -> None:
    loaded, ids = load_model(folder), torch.arange(20)[None]
    assert loaded.model.dtype == torch.float32
    expected = make_llama().eval()(ids).logits
    torch.testing.assert_close(loaded.model(ids).logits, expected, atol=1e-5, rtol=0)
    assert loaded.encode("hi").text == "<|user|>hi<|end|><|assistant|>"


def test_two_folders_with_the_same_files_share_their_kv(folder: Path, tmp_path: Path) -> None:
    shutil.copytree(folder, tmp_path / "copy")
    (tmp_path / "copy" / "README.md").write_text("a copy")
    first = load_model(folder).fingerprint
    assert load_model(tmp_path / "copy").fingerprint == first
    assert load_model(str(folder)).fingerprint == first, "digests are remembered"


def test_what_shapes_nothing_changes_no_fingerprint(folder: Path) -> None:
    """A whole download has such files; one of only what is loaded has not."""
    before = load_model(folder).fingerprint
    for name in ("LICENSE.txt", "license.json", "README.txt", "Notice.txt", "USE_POLICY.txt"):
        (folder / name).write_text("anything")
    for name in ("training_args.bin", "trainer_state.json", "requirements.txt", ".gitattributes"):
        (folder / name).write_text("anything")
    for name in ("pytorch_model.bin", "pytorch_model-00001-of-00002.bin"):
        (folder / name).write_text("the same weights, which safetensors have already")
    assert load_model(folder).fingerprint == before


@pytest.mark.parametrize(
    "name",
    ["vocab.txt", "merges.txt", "vocab.json", "generation_config.json", "chat_template.jinja",
     "tokenizer.model", "model-00001-of-00002.safetensors", "unknown.json", "unknown.bin"],
)  # fmt: skip
def test_what_may_shape_tokens_or_weights_changes_the_fingerprint(folder: Path, name: str) -> None:
    before = _files_digest(str(folder), {})
    with (folder / name).open("a") as file:
        file.write(" ")
    assert _files_digest(str(folder), {}) != before


def test_pickled_weights_count_where_there_are_no_others(folder: Path) -> None:
    (folder / "model.safetensors").unlink()
    (folder / "pytorch_model.bin").write_bytes(b"one")
    before = _files_digest(str(folder), {})
    (folder / "pytorch_model.bin").write_bytes(b"two")
    assert _files_digest(str(folder), {}) != before


def test_a_model_trained_on_does_not_meet_the_kv_of_what_it_was(folder: Path) -> None:
    before = load_model(folder).fingerprint
    model = make_llama()
    one_weight(model, None)
    model.save_pretrained(folder)
    assert load_model(folder).fingerprint != before


def test_another_dtype_or_template_does_not_meet_the_kv(folder: Path) -> None:
    before = load_model(folder).fingerprint
    half = load_model(folder, dtype="bfloat16")
    assert half.model.dtype == torch.bfloat16 and half.fingerprint != before
    tokenizer = make_tokenizer()
    tokenizer.chat_template += " "
    tokenizer.save_pretrained(folder)
    assert load_model(folder).fingerprint != before


@pytest.mark.parametrize("name", ["float33", "Tensor", "nn"])
def test_an_unknown_dtype_is_named(folder: Path, name: str) -> None:
    with pytest.raises(ConfigError, match=name):
        load_model(folder, dtype=name)


@pytest.mark.parametrize(
    "source", ["/no/such/folder", "./nowhere", "~/nowhere", "nowhere", "a/b/c", "model.gguf"]
)
def test_what_is_not_there_is_named(source: str) -> None:
    with pytest.raises(ModelNotFound, match="no model folder or file") as caught:
        load_model(source)
    assert source in str(caught.value) and "bundled:smollm2" in str(caught.value)


def test_a_hub_id_that_is_not_in_the_cache_is_named() -> None:
    with pytest.raises(ModelNotFound, match="centroidkv-tests/no-such-model"):
        load_model("centroidkv-tests/no-such-model")


def test_an_unknown_bundled_name_tells_the_known_ones() -> None:
    with pytest.raises(ModelNotFound, match="bundled:smollm2"):
        load_model("bundled:gpt5")


def test_a_file_that_is_no_model_is_named(tmp_path: Path) -> None:
    (tmp_path / "letter.txt").write_text("dear bank")
    with pytest.raises(ModelNotFound, match=r"letter\.txt"):
        load_model(tmp_path / "letter.txt")


def test_an_empty_folder_is_named(tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    with pytest.raises(ModelNotFound, match="empty"):
        load_model(tmp_path / "empty")


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("model.safetensors", b"garbage" * 10),
        ("model.safetensors", b""),
        ("config.json", b"garbage"),
        ("config.json", b"{}"),
        ("tokenizer.json", b"garbage"),
    ],
)
def test_a_damaged_folder_is_a_model_error(folder: Path, name: str, content: bytes) -> None:
    (folder / name).write_bytes(content)
    with pytest.raises(ModelError, match="model"):
        load_model(folder)


def test_weights_that_are_cut_off_are_a_model_error(folder: Path) -> None:
    path = folder / "model.safetensors"
    path.write_bytes(path.read_bytes()[:-1000])
    with pytest.raises(ModelError):
        load_model(folder)


def test_a_gguf_file_that_is_none_is_a_model_error(tmp_path: Path) -> None:
    (tmp_path / "model.gguf").write_bytes(b"garbage" * 100)
    with pytest.raises(ModelError, match="gguf"):
        load_model(tmp_path / "model.gguf")


def test_a_folder_of_a_model_with_a_running_state_is_refused(tmp_path: Path) -> None:
    from transformers import MambaConfig, MambaForCausalLM

    config = MambaConfig(vocab_size=272, hidden_size=32, num_hidden_layers=1, state_size=4)
    MambaForCausalLM(config).save_pretrained(tmp_path / "model")
    make_tokenizer().save_pretrained(tmp_path / "model")
    with pytest.raises(UnsupportedModel, match="MambaForCausalLM"):
        load_model(tmp_path / "model")
