"""A model that was changed under an open engine is met by an error, not by KV of what it was."""

import warnings
from collections.abc import Callable, Iterator

import pytest
import torch
from transformers import LlamaForCausalLM, PreTrainedTokenizerFast

from centroidkv import Engine
from centroidkv.errors import ModelError
from centroidkv.models.loading import wrap_model
from centroidkv.models.weight_watch import WeightWatch
from small_parts import make_llama

PROMPT = "Answer from the context.\n\n" + "A lost card is blocked in the app at once. " * 6


def loads_others(model: LlamaForCausalLM) -> None:
    model.load_state_dict(make_llama(seed=1).state_dict())


def is_given_others(model: LlamaForCausalLM) -> None:
    model.load_state_dict(make_llama(seed=1).state_dict(), assign=True)


def writes_one(model: LlamaForCausalLM) -> None:
    with torch.no_grad():
        model.model.layers[1].self_attn.v_proj.weight[3, 5] += 1e-3


def writes_past_the_count(model: LlamaForCausalLM) -> None:
    for weight in model.parameters():
        weight.data.mul_(1.01)


def has_a_weight_replaced(model: LlamaForCausalLM) -> None:
    layer = model.model.layers[0].mlp.up_proj
    layer.weight = torch.nn.Parameter(layer.weight.detach() * 1.01)


def has_a_layer_replaced(model: LlamaForCausalLM) -> None:
    model.model.layers[0].mlp.up_proj = torch.nn.Linear(64, 128, bias=False)


def becomes_another_type(model: LlamaForCausalLM) -> None:
    model.to(torch.bfloat16)


@pytest.mark.parametrize(
    "change",
    [loads_others, is_given_others, writes_one, writes_past_the_count, has_a_weight_replaced,
     has_a_layer_replaced, becomes_another_type],
)  # fmt: skip
def test_a_model_changed_under_an_open_engine_gives_no_wrong_answer(
    change: Callable[[LlamaForCausalLM], None],
    open_engine: Callable[..., Engine],
    tokenizer: PreTrainedTokenizerFast,
) -> None:
    llama = make_llama()
    engine = open_engine(model=wrap_model(llama, tokenizer))
    engine.generate(PROMPT, max_tokens=4)
    assert engine.generate(PROMPT, max_tokens=4).usage.outcome == "hit"
    change(llama)
    for reuse in ("exact", "off"):
        with pytest.raises(ModelError, match=r"LlamaForCausalLM .* open an engine anew"):
            engine.generate(PROMPT, max_tokens=4, reuse=reuse)
    engine.close()
    again = open_engine(model=wrap_model(llama, tokenizer))
    assert again.generate(PROMPT, max_tokens=4).usage.outcome == "miss"


def test_what_is_computed_behind_a_change_is_not_kept(
    open_engine: Callable[..., Engine], tokenizer: PreTrainedTokenizerFast
) -> None:
    llama = make_llama()
    before = {name: weight.clone() for name, weight in llama.state_dict().items()}
    engine = open_engine(model=wrap_model(llama, tokenizer))
    answer: Iterator[object] = engine.stream(PROMPT, max_tokens=4)
    next(answer)
    llama.load_state_dict(make_llama(seed=1).state_dict())
    with pytest.raises(ModelError, match="weights were changed"):
        list(answer)
    engine.close()
    llama.load_state_dict(before)
    again = open_engine(model=wrap_model(llama, tokenizer))
    on = again.generate(PROMPT, max_tokens=24)
    off = again.generate(PROMPT, max_tokens=24, reuse="off")
    assert on.usage.outcome == "hit", "its prompt was computed before"
    assert on.token_ids == off.token_ids


def test_what_changes_no_result_is_no_change(tokenizer: PreTrainedTokenizerFast) -> None:
    llama = make_llama().eval()
    watch = WeightWatch(llama)
    llama.requires_grad_(requires_grad=False)
    llama(torch.arange(20)[None])
    llama.to("cpu")
    assert watch.change() == ""


def test_weights_of_inference_mode_are_watched_by_their_numbers() -> None:
    with torch.inference_mode():
        llama = make_llama()
        watch = WeightWatch(llama)
        assert watch.change() == ""
        llama.load_state_dict(make_llama(seed=1).state_dict())
    assert watch.change() == "weights were changed"


# adapters


@pytest.fixture
def adapted() -> LlamaForCausalLM:
    """A model with two adapters of random weights, of which the second is active."""
    peft = pytest.importorskip("peft")
    llama = make_llama()
    for seed, name in enumerate(("billing", "legal")):
        torch.manual_seed(seed)
        config = peft.LoraConfig(
            r=4, target_modules=["q_proj", "k_proj", "v_proj"], init_lora_weights=False
        )
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # about a second one
            llama.add_adapter(config, adapter_name=name)
    return llama.eval()


def merged(model: LlamaForCausalLM) -> None:
    for layer in model.modules():
        if hasattr(layer, "merge"):
            layer.merge()


def scaled(model: LlamaForCausalLM) -> None:
    for layer in model.modules():
        if hasattr(layer, "scale_layer"):
            layer.scale_layer(0.5)


CHANGES: list[Callable[[LlamaForCausalLM], object]] = [
    lambda m: m.set_adapter("billing"),
    lambda m: m.set_adapter(["billing", "legal"]),
    lambda m: m.disable_adapters(),
    merged,
    scaled,
]


@pytest.mark.parametrize("change", CHANGES)
def test_an_adapter_that_is_not_active_has_another_fingerprint(
    change: Callable[[LlamaForCausalLM], object],
    adapted: LlamaForCausalLM,
    tokenizer: PreTrainedTokenizerFast,
) -> None:
    before = wrap_model(adapted, tokenizer).fingerprint
    assert wrap_model(adapted, tokenizer).fingerprint == before
    change(adapted)
    assert wrap_model(adapted, tokenizer).fingerprint != before


@pytest.mark.parametrize("change", CHANGES)
def test_another_adapter_under_an_open_engine_gives_no_wrong_answer(
    change: Callable[[LlamaForCausalLM], object],
    adapted: LlamaForCausalLM,
    open_engine: Callable[..., Engine],
    tokenizer: PreTrainedTokenizerFast,
) -> None:
    engine = open_engine(model=wrap_model(adapted, tokenizer))
    engine.generate(PROMPT, max_tokens=4)
    assert engine.generate(PROMPT, max_tokens=4).usage.outcome == "hit"
    change(adapted)
    with pytest.raises(ModelError, match="adapters were changed"):
        engine.generate(PROMPT, max_tokens=4)


def test_an_adapter_that_is_active_again_finds_its_kv(
    adapted: LlamaForCausalLM,
    open_engine: Callable[..., Engine],
    tokenizer: PreTrainedTokenizerFast,
) -> None:
    engine = open_engine(model=wrap_model(adapted, tokenizer))
    first = engine.generate(PROMPT, max_tokens=4)
    adapted.set_adapter("billing")
    with pytest.raises(ModelError):
        engine.generate(PROMPT, max_tokens=4)
    adapted.set_adapter("legal")
    again = engine.generate(PROMPT, max_tokens=4)
    assert again.usage.outcome == "hit" and again.token_ids == first.token_ids
