"""Golden tests of running sequences: a restored prefix changes nothing but the work.

The models are random and small, one for each way of telling positions: rotary, learned, alibi.
"""

from collections.abc import Sequence

import pytest
import torch
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from tokenizers.processors import TemplateProcessing
from transformers import (
    BloomConfig,
    FalconConfig,
    GemmaConfig,
    GPT2Config,
    GPTNeoXConfig,
    LlamaConfig,
    MistralConfig,
    MixtralConfig,
    OPTConfig,
    Phi3Config,
    PhiConfig,
    PretrainedConfig,
    PreTrainedTokenizerFast,
    Qwen2Config,
    Qwen3Config,
)
from transformers.models.auto.modeling_auto import AutoModelForCausalLM

from centroidkv.config import Sampling
from centroidkv.errors import ContextTooLong, ModelError, UnsupportedModel
from centroidkv.models.loading import wrap_model
from centroidkv.models.transformers_model import TransformersModel
from centroidkv.protocols import CausalModel
from centroidkv.types import KVBlock, Message
from small_parts import TEMPLATE, make_llama, make_tokenizer

TINY = {
    "vocab_size": 272,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "max_position_embeddings": 512,
}
GQA = {**TINY, "num_key_value_heads": 2}
GPT = {"vocab_size": 272, "n_embd": 32, "n_layer": 2, "n_head": 4}


# Their rotary angles change with the length of the prompt: served exactly, or refused.
LENGTH_DEPENDENT = ("phi-3 long", "llama dynamic")


def configs() -> dict[str, PretrainedConfig]:
    opt = {**TINY, "ffn_dim": 48, "word_embed_proj_dim": 32}
    neox = {**TINY, "rotary_pct": 0.25}
    bloom = {"vocab_size": 272, "hidden_size": 32, "n_layer": 2, "n_head": 4}
    falcon = {"vocab_size": 272, "hidden_size": 32, "num_hidden_layers": 2}
    long = {"rope_type": "longrope", "short_factor": [1.0] * 4, "long_factor": [40.0] * 4}
    return {
        "llama": LlamaConfig(**GQA),
        "llama without gqa": LlamaConfig(**TINY),
        "llama yarn": LlamaConfig(
            **GQA, rope_scaling={"rope_type": "yarn", "factor": 2.0, "rope_theta": 1e4}
        ),
        "qwen2": Qwen2Config(**GQA),
        "qwen3": Qwen3Config(**GQA, head_dim=16),
        "mistral": MistralConfig(**GQA, sliding_window=None),
        "mixtral": MixtralConfig(**GQA, num_local_experts=4, sliding_window=None),
        "gemma": GemmaConfig(**{**GQA, "num_key_value_heads": 1}, head_dim=16),
        "phi": PhiConfig(**TINY),
        "gpt-neox": GPTNeoXConfig(**neox),
        "gpt2": GPT2Config(**GPT, n_positions=512),
        "opt": OPTConfig(**opt),
        "bloom": BloomConfig(**bloom),
        "falcon alibi": FalconConfig(**falcon, num_attention_heads=4, alibi=True),
        "falcon rotary": FalconConfig(**falcon, num_attention_heads=4, alibi=False),
        "phi-3 long": Phi3Config(
            **GQA,
            pad_token_id=0,
            sliding_window=None,
            original_max_position_embeddings=100,
            initializer_range=0.3,
            rope_scaling={**long, "rope_theta": 1e4},
        ),
        "llama dynamic": LlamaConfig(
            **{**GQA, "max_position_embeddings": 200},
            initializer_range=0.3,
            rope_scaling={"rope_type": "dynamic", "factor": 4.0, "rope_theta": 1e4},
        ),
    }


def wrap(kind: str, dtype: torch.dtype = torch.float32) -> TransformersModel:
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(configs()[kind]).to(dtype)
    model.generation_config.eos_token_id = None
    return wrap_model(model, make_tokenizer())


def tokens(count: int, *, seed: int = 1) -> list[int]:
    random = torch.Generator().manual_seed(seed)
    return torch.randint(0, 256, (count,), generator=random).tolist()


def greedy(
    model: TransformersModel,
    prompt: Sequence[int],
    *,
    blocks: Sequence[KVBlock] = (),
    count: int = 8,
) -> tuple[list[int], list[float]]:
    """Decode behind restored blocks; return token ids and margins."""
    sequence = model.open_sequence(len(prompt) + count)
    sequence.restore(blocks)
    sequence.prefill(prompt[sequence.num_tokens :])
    assert sequence.num_tokens == len(prompt)
    found = list(sequence.decode(Sampling(max_tokens=count)))
    sequence.close()
    return [t.id for t in found], [t.margin for t in found]


def cut(model: TransformersModel, prompt: Sequence[int], borders: Sequence[int]) -> list[KVBlock]:
    sequence = model.open_sequence(len(prompt))
    sequence.prefill(prompt)
    pairs = zip([0, *borders], borders, strict=False)
    blocks = [sequence.snapshot(start, stop) for start, stop in pairs]
    sequence.close()
    return blocks


# golden: a restored prefix changes nothing


@pytest.mark.parametrize("kind", configs())
def test_a_restored_prefix_gives_the_same_answer(kind: str) -> None:
    """The prefix was computed as the beginning of a longer prompt than the one it serves."""
    try:
        model = wrap(kind)
    except UnsupportedModel:
        assert kind in LENGTH_DEPENDENT
        return
    shared = tokens(70)
    long = [*shared, *tokens(120, seed=2)]
    short = [*shared, *tokens(9, seed=3)]
    blocks = cut(model, long, [64, 70])
    expected_ids, expected_margins = greedy(model, short)
    ids, margins = greedy(model, short, blocks=blocks)
    assert ids == expected_ids
    assert margins == pytest.approx(expected_margins, abs=1e-4)


@pytest.mark.parametrize("kind", ["llama", "qwen3", "gpt2", "opt", "bloom"])
def test_it_answers_as_transformers_own_generate(kind: str) -> None:
    model = wrap(kind)
    prompt = tokens(40)
    expected = model.model.generate(
        torch.tensor([prompt]),
        attention_mask=torch.ones(1, 40, dtype=torch.long),
        max_new_tokens=8,
        do_sample=False,
        pad_token_id=0,
    )[0, 40:].tolist()
    assert greedy(model, prompt)[0] == expected


@pytest.mark.parametrize("border", [1, 63, 64, 99])
def test_any_border_gives_the_same_answer(model: TransformersModel, border: int) -> None:
    prompt = tokens(100)
    expected = greedy(model, prompt, count=16)
    ids, margins = greedy(model, prompt, blocks=cut(model, prompt, [border]), count=16)
    assert ids == expected[0]
    assert margins == pytest.approx(expected[1], abs=1e-4)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_kv_is_restored_bit_by_bit(dtype: torch.dtype) -> None:
    model = wrap("llama", dtype)
    blocks = cut(model, tokens(100), [64, 100])
    sequence = model.open_sequence(100)
    sequence.restore(blocks)
    assert sequence.num_tokens == 100
    for block, (start, stop) in zip(blocks, [(0, 64), (64, 100)], strict=True):
        again = sequence.snapshot(start, stop)
        assert again.dtype == block.dtype == str(dtype).removeprefix("torch.")
        assert again.keys.tobytes() == block.keys.tobytes()
        assert again.values.tobytes() == block.values.tobytes()
    sequence.close()


@pytest.mark.parametrize("kind", ["llama", "qwen2", "gemma"])
def test_a_bfloat16_prefix_gives_the_same_answer_where_the_work_is_the_same(kind: str) -> None:
    """Computed in the same pieces, restored or not: not even a rounding may differ."""
    model = wrap(kind, torch.bfloat16)
    prompt = tokens(80)
    sequence = model.open_sequence(96)
    sequence.prefill(prompt[:64])
    block = sequence.snapshot(0, 64)
    sequence.prefill(prompt[64:])
    expected = [(t.id, t.margin) for t in sequence.decode(Sampling(max_tokens=8))]
    sequence.close()
    ids, margins = greedy(model, prompt, blocks=[block])
    assert list(zip(ids, margins, strict=True)) == expected


def test_the_keys_of_a_prefix_are_those_of_the_prefix_alone(model: TransformersModel) -> None:
    shared = tokens(64)
    (alone,) = cut(model, shared, [64])
    (within,) = cut(model, [*shared, *tokens(200, seed=5)], [64])
    assert torch.allclose(torch.tensor(alone.keys), torch.tensor(within.keys), atol=1e-5)
    assert torch.allclose(torch.tensor(alone.values), torch.tensor(within.values), atol=1e-5)


def test_an_arena_used_before_leaves_no_trace(model: TransformersModel) -> None:
    prompt = tokens(50)
    expected = greedy(model, prompt)
    greedy(model, tokens(200, seed=9))
    assert greedy(model, prompt) == expected


def test_requests_that_interleave_do_not_mix(model: TransformersModel) -> None:
    prompts = [tokens(30, seed=s) for s in (1, 2)]
    expected = [greedy(model, p)[0] for p in prompts]
    sequences = [model.open_sequence(40) for _ in prompts]
    for sequence, prompt in zip(sequences, prompts, strict=True):
        sequence.prefill(prompt)
    streams = [s.decode(Sampling(max_tokens=8)) for s in sequences]
    pairs = list(zip(*streams, strict=True))
    assert [[t.id for t in column] for column in zip(*pairs, strict=True)] == expected
    for sequence in sequences:
        sequence.close()


def test_a_prompt_longer_than_one_forward_gives_the_same_answer() -> None:
    long = wrap_model(make_llama(), make_tokenizer())
    prompt = tokens(2100)
    expected = long.model(torch.tensor([prompt])).logits[0, -1]
    ids, _ = greedy(long, prompt, count=1)
    assert ids == [int(expected.argmax())]


# decoding


def test_decoding_ends_at_max_tokens_or_at_the_end_token(tokenizer) -> None:
    torch_model = make_llama()
    model = wrap_model(torch_model, tokenizer)
    ids, _ = greedy(model, tokens(20), count=6)
    assert len(ids) == 6
    torch_model.generation_config.eos_token_id = [ids[2]]
    ending = wrap_model(torch_model, tokenizer)
    sequence = ending.open_sequence(40)
    sequence.prefill(tokens(20))
    found = list(sequence.decode(Sampling(max_tokens=6)))
    assert [t.id for t in found] == ids[:3][: ids.index(ids[2]) + 1]
    assert [t.is_end for t in found][-1] and found[-1].text == ""
    sequence.close()


def test_the_tokenizers_end_token_ends_an_answer_too(model: TransformersModel) -> None:
    assert model.is_end(257) and not model.is_end(65)


def test_the_text_of_tokens_is_whole_characters(model: TransformersModel, tokenizer) -> None:
    """Tokens are bytes here; a character comes when its last byte does."""
    sequence = model.open_sequence(400)
    sequence.prefill(tokens(20))
    options = Sampling(max_tokens=120, temperature=3.0, seed=0)
    found = list(sequence.decode(options))
    text = "".join(t.text for t in found)
    whole = tokenizer.decode([t.id for t in found if not t.is_end], skip_special_tokens=True)
    assert text and whole.startswith(text.rstrip("\ufffd"))
    sequence.close()


def test_sampling_with_a_seed_repeats(model: TransformersModel) -> None:
    def sample(seed: int) -> list[int]:
        sequence = model.open_sequence(60)
        sequence.prefill(tokens(20))
        found = list(sequence.decode(Sampling(max_tokens=20, temperature=1.5, seed=seed)))
        sequence.close()
        return [t.id for t in found]

    assert sample(1) == sample(1) != sample(2)


def test_a_stream_that_is_left_early_can_be_closed(model: TransformersModel) -> None:
    sequence = model.open_sequence(60)
    sequence.prefill(tokens(20))
    stream = sequence.decode(Sampling(max_tokens=40))
    next(stream)
    sequence.close()
    sequence.close()
    assert len(list(stream)) <= 1


# sizes


def test_the_context_is_the_models(model: TransformersModel) -> None:
    assert model.context_tokens == 4096
    assert wrap("gpt2").context_tokens == 512
    assert isinstance(model, CausalModel)


def test_a_sequence_longer_than_the_context_is_refused(model: TransformersModel) -> None:
    with pytest.raises(ContextTooLong, match="4,096") as caught:
        model.open_sequence(4097)
    assert caught.value.context_tokens == 4096
    model.open_sequence(4096).close()


# text to tokens


def test_offsets_tell_where_tokens_start(model: TransformersModel) -> None:
    prompt = model.encode("a 한 b", chat_template=False)
    assert len(prompt) == len("a 한 b".encode())
    assert prompt.text == "a 한 b"
    assert prompt.offsets == (0, 1, 2, 2, 2, 3, 4)
    assert [prompt.tokens_before(i) for i in (0, 1, 2, 3, 5)] == [0, 1, 2, 5, 7]


def test_a_text_becomes_one_user_message(model: TransformersModel) -> None:
    rendered = model.encode("hello")
    assert rendered == model.encode([Message("user", "hello")])
    assert rendered.text == "<|user|>hello<|end|><|assistant|>"
    assert model.encode("hello", chat_template=False).text == "hello"


def with_bos(template: str | None) -> PreTrainedTokenizerFast:
    """A tokenizer that puts a BOS before every text, as Llama's does."""
    from tokenizers import processors

    made = make_tokenizer()
    made.backend_tokenizer.post_processor = processors.TemplateProcessing(
        single="<|bos|> $A", special_tokens=[("<|bos|>", 256)]
    )
    made.chat_template = template
    return made


def test_there_is_one_bos_whoever_writes_it() -> None:
    template = "<|bos|>{% for m in messages %}{{ m['content'] }}{% endfor %}"
    model = wrap_model(make_llama(), with_bos(template))
    assert model.encode("hi").token_ids.count(256) == 1
    assert model.encode("hi", chat_template=False).token_ids.count(256) == 1
    plain = wrap_model(make_llama(), with_bos(None))
    assert plain.encode("hi").token_ids.count(256) == 1


def test_without_a_template_texts_pass_and_messages_are_refused() -> None:
    model = wrap_model(make_llama(), with_bos(None))
    assert model.encode("hi").text == "hi"
    with pytest.raises(ModelError, match="no chat template"):
        model.encode([Message("user", "hi")])


def test_a_template_that_refuses_says_why() -> None:
    template = "{{ raise_exception('system is not supported') }}"
    model = wrap_model(make_llama(), with_bos(template))
    with pytest.raises(ModelError, match="system is not supported"):
        model.encode([Message("system", "hi")])


def test_counting_counts_the_text_alone(model: TransformersModel) -> None:
    assert model.count_tokens("abc") == 3
    assert model.count_tokens("") == 0
    assert wrap_model(make_llama(), with_bos(None)).count_tokens("abc") == 3


@pytest.mark.parametrize("text", ["lone \ud800 surrogate", "\x00", "🏦" * 3, "\r\n\u2028"])
def test_odd_text_is_encoded(model: TransformersModel, text: str) -> None:
    prompt = model.encode(text)
    assert len(prompt.token_ids) == len(prompt.offsets) > 0
    assert model.count_tokens(text) > 0


def test_a_slow_tokenizer_is_refused() -> None:
    from transformers import ByT5Tokenizer

    with pytest.raises(UnsupportedModel, match="slow tokenizer"):
        wrap_model(make_llama(), ByT5Tokenizer())


def test_a_tokenizer_without_special_tokens_will_do() -> None:
    core = Tokenizer(WordLevel({"a": 0, "b": 1, "?": 2}, unk_token="?"))
    model = wrap_model(make_llama(), PreTrainedTokenizerFast(tokenizer_object=core))
    assert model.encode("a", chat_template=False).token_ids == (0,)


# templates

LLAMA_3 = (
    "{{ '<|bos|>' }}{% for m in messages %}<|user|>{{ m['role'] }}\n\n{{ m['content'] | trim }}"
    "<|end|>{% endfor %}{% if add_generation_prompt %}<|assistant|>{% endif %}"
)
QWEN = (
    "{% if messages[0]['role'] != 'system' %}<|system|>You are helpful.<|end|>\n{% endif %}"
    "{% for m in messages %}<|user|>{{ m['role'] }}\n{{ m['content'] }}<|end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|assistant|>\n{% endif %}"
)
ALTERNATING = (
    "{% for m in messages %}{% if loop.index0 and m['role'] == messages[loop.index0 - 1]['role'] %}"
    "{{ raise_exception('roles must alternate') }}{% endif %}<|user|>{{ m['content'] }}<|end|>"
    "{% endfor %}{% if add_generation_prompt %}<|assistant|>{% endif %}"
)


def with_template(template: str, *, adds_bos: bool) -> TransformersModel:
    tokenizer = make_tokenizer()
    tokenizer.chat_template = template
    if adds_bos:
        single = [("<|bos|>", tokenizer.bos_token_id)]
        tokenizer.backend_tokenizer.post_processor = TemplateProcessing(
            single="<|bos|> $A", pair="<|bos|> $A $B", special_tokens=single
        )
    return wrap_model(make_llama(), tokenizer)


@pytest.mark.parametrize("adds_bos", [True, False])
@pytest.mark.parametrize("template", [LLAMA_3, QWEN, TEMPLATE], ids=["llama-3", "qwen", "chatml"])
def test_one_bos_at_most_and_the_templates_own_ids(template: str, *, adds_bos: bool) -> None:
    model = with_template(template, adds_bos=adds_bos)
    turns = [Message("user", " How do I block a card? "), Message("assistant", "In the app.")]
    turns.append(Message("user", "And then?"))
    given = [{"role": m.role, "content": m.content} for m in turns]
    expected = model.tokenizer.apply_chat_template(
        given, add_generation_prompt=True, return_dict=True
    )["input_ids"]
    ids = model.encode(turns).token_ids
    assert list(ids) == list(expected)
    assert ids.count(model.tokenizer.bos_token_id) == (1 if template == LLAMA_3 else 0)
    raw = model.encode("plain text", chat_template=False).token_ids
    assert raw.count(model.tokenizer.bos_token_id) == (1 if adds_bos else 0)


def test_doubled_roles_are_merged_where_the_template_refuses_them() -> None:
    model = with_template(ALTERNATING, adds_bos=False)
    doubled = [Message("user", "one"), Message("user", "two")]
    joined = model.encode([Message("user", "one\n\ntwo")])
    assert model.encode(doubled) == joined
    with pytest.raises(ModelError, match="alternate"):
        with_template("{{ raise_exception('roles must alternate') }}", adds_bos=False).encode(
            doubled
        )


def test_a_forward_that_broke_off_leaves_no_kv_of_some_layers_only() -> None:
    """The next request takes the arena over; layers that were not reached hold nothing."""
    model, prompt = wrap("llama"), tokens(80)
    expected = greedy(model, prompt)
    greedy(model, tokens(90, seed=9))  # what the arena holds then is of another prompt

    def breaks(*_: object) -> None:
        raise KeyboardInterrupt

    hook = model.model.model.layers[1].register_forward_pre_hook(breaks)
    sequence = model.open_sequence(100, prompt, namespace="n")
    with pytest.raises(KeyboardInterrupt):
        sequence.prefill(prompt)
    hook.remove()
    sequence.close()
    again = model.open_sequence(100, prompt, namespace="n")
    again.prefill(prompt[again.num_tokens :])
    found = list(again.decode(Sampling(max_tokens=8)))
    again.close()
    assert [t.id for t in found] == expected[0]
    assert [t.margin for t in found] == pytest.approx(expected[1], abs=1e-4)
