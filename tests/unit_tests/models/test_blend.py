"""Blended prefills: equal to a plain one where all is computed, and to the method where not."""

from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from transformers import PreTrainedTokenizerFast
from transformers.models.llama.modeling_llama import apply_rotary_pos_emb

from centroidkv.config import Sampling
from centroidkv.models import blend_rows
from centroidkv.models.arena import Arena, kv_shape
from centroidkv.models.blend import BlendReport
from centroidkv.models.blend_choice import Recipe, attention_received
from centroidkv.models.blend_rows import Fresh, Rows
from centroidkv.models.blend_trial import problem_of
from centroidkv.models.free_keys import PlacedPassage, free_block, turned_block
from centroidkv.models.lending import BorrowedArena
from centroidkv.models.loading import wrap_model
from centroidkv.models.positions import rotary_of
from centroidkv.models.transformers_model import TransformersModel
from centroidkv.types import KVBlock
from model_families import FAMILIES, Family, make_model
from small_parts import make_block

HEAD = [5, 9, 2, 77, 31]
ONE, TWO = [(11 * i + 3) % 256 for i in range(90)], [(17 * i + 8) % 256 for i in range(70)]
END = [40, 41, 42, 43, 44, 45]
PROMPT = [*HEAD, *TWO, 1, 2, *ONE, *END]


@pytest.fixture(scope="module")
def model(tokenizer: PreTrainedTokenizerFast) -> TransformersModel:
    llama = make_model(Family("Llama", "full", "LlamaConfig", {"num_hidden_layers": 4}))
    return wrap_model(llama, tokenizer)


def passage_kv(model: TransformersModel, passage: list[int]) -> KVBlock:
    """Return a passage's KV behind the head, free of positions."""
    sequence = model.open_sequence(len(HEAD) + len(passage))
    sequence.prefill([*HEAD, *passage])
    block = sequence.snapshot(len(HEAD), sequence.num_tokens)
    sequence.close()
    assert model.rotary is not None
    free = free_block(block, model.rotary, len(HEAD))
    for array in (free.keys, free.values):
        array.flags.writeable = False  # as it comes from a file
    return free


@pytest.fixture(scope="module")
def passages(model: TransformersModel) -> list[PlacedPassage]:
    """The two passages in the order in which they were not computed."""
    first, second = len(HEAD), len(HEAD) + len(TWO) + 2
    return [
        PlacedPassage(first, first + len(TWO), passage_kv(model, TWO)),
        PlacedPassage(second, second + len(ONE), passage_kv(model, ONE)),
    ]


def plain(model: TransformersModel, prompt: list[int] = PROMPT) -> torch.Tensor:
    sequence = model.open_sequence(len(prompt))
    sequence.prefill(prompt)
    logits = sequence.logits.clone()
    sequence.close()
    return logits


@pytest.mark.parametrize("held", [0, 3, 5])
@pytest.mark.parametrize("share", [1.0, None])
def test_all_that_differs_computed_again_is_a_prefill(
    model: TransformersModel, passages: list[PlacedPassage], held: int, share: float | None
) -> None:
    sequence = model.open_sequence(len(PROMPT) + 4)
    if held:
        sequence.prefill(PROMPT[:held])
    recipe = Recipe(share, bound=1e-9)
    done = model.blender.run(sequence._open, PROMPT[held:], passages, recipe)
    # The passage right behind its own head is what it was there.
    expected = BlendReport(160, 160 if share else len(ONE), len(PROMPT) - held - 160, 0.0)
    assert replace(done.report, uncorrected=0.0) == expected
    assert (done.logits[0] - plain(model)).abs().max() < 1e-4
    sequence.close()


def test_without_passages_it_is_a_prefill(model: TransformersModel) -> None:
    sequence, other = (model.open_sequence(len(PROMPT) + 8) for _ in range(2))
    report = sequence.blend(PROMPT, [])
    other.prefill(PROMPT)
    assert (report.placed_tokens, report.new_tokens) == (0, len(PROMPT))
    assert (sequence.logits - other.logits).abs().max() < 1e-4
    some = Sampling(max_tokens=8)
    assert [t.id for t in sequence.decode(some)] == [t.id for t in other.decode(some)]
    for each in (sequence, other):
        each.close()


def dense(
    model: TransformersModel, passages: list[PlacedPassage], places: torch.Tensor
) -> torch.Tensor:
    """Blend by the book: all scores of all rows, masked by position, KV heads repeated."""
    body: Any = model.model.model
    assert model.rotary is not None
    positions = rows = torch.arange(len(PROMPT))
    hidden = body.embed_tokens(torch.tensor([PROMPT]))
    cos, sin = body.rotary_emb(hidden, positions[None])
    for number, layer in enumerate(body.layers):
        attention = layer.self_attn
        shape = (1, len(rows), -1, attention.head_dim)
        normed = layer.input_layernorm(hidden)
        query, keys, values = (
            part(normed).view(shape).transpose(1, 2)
            for part in (attention.q_proj, attention.k_proj, attention.v_proj)
        )
        query, keys = apply_rotary_pos_emb(query, keys, cos[:, rows], sin[:, rows])
        if number < 2:
            all_keys, all_values = keys, values
        else:
            all_keys, all_values = (torch.zeros(1, 2, len(PROMPT), 16) for _ in range(2))
            for p in passages:
                turned = turned_block(p.block, model.rotary, np.arange(p.start, p.stop))
                all_keys[0, :, p.start : p.stop] = torch.from_numpy(turned.keys[number])
                all_values[0, :, p.start : p.stop] = torch.from_numpy(turned.values[number].copy())
            all_keys[:, :, rows], all_values[:, :, rows] = keys, values
        if number == 1:  # the check layer
            is_kept = torch.ones(len(PROMPT), dtype=torch.bool)
            for p in passages:
                is_kept[p.start : p.stop] = False
            is_kept[places] = True
            rows = is_kept.nonzero()[:, 0]
            hidden, query = hidden[:, rows], query[:, :, rows]
        repeated = [x.repeat_interleave(2, 1) for x in (all_keys, all_values)]
        scores = query @ repeated[0].mT * attention.scaling
        scores = scores.masked_fill(positions > rows[:, None], float("-inf"))
        output = (scores.softmax(-1) @ repeated[1]).transpose(1, 2).reshape(1, len(rows), -1)
        hidden = hidden + attention.o_proj(output)
        hidden = hidden + layer.mlp(layer.post_attention_layernorm(hidden))
    logits: torch.Tensor = model.model.lm_head(body.norm(hidden[:, -1]))[0]
    return logits


@torch.inference_mode()
def test_scattered_rows_are_those_of_a_dense_computation(
    model: TransformersModel, passages: list[PlacedPassage]
) -> None:
    sequence, whole = (model.open_sequence(len(PROMPT)) for _ in range(2))
    done = model.blender.run(sequence._open, PROMPT, passages, Recipe(0.2, asked=0))
    whole.prefill(PROMPT)
    assert done.report.again_tokens == 32
    # The first passage stands where it was computed; of the second, what deviates most.
    behind = passages[1]
    fresh = whole.snapshot(behind.start, behind.stop).values[1]
    for each in (sequence, whole):
        each.close()
    worst = np.square(fresh - behind.block.values[1]).sum((0, 2)).argsort()[-32:]
    expected = dense(model, passages, torch.from_numpy(worst + behind.start))
    assert (done.logits[0] - expected).abs().max() < 1e-4
    assert (done.logits[0] - plain(model)).abs().max() > 1e-3


def test_masks_that_are_kept_have_a_bound(model: TransformersModel) -> None:
    rows = Rows(Arena(model.shape, 4096), torch.arange(4096))
    masks = [rows._mask(number, 4, torch.float32) for number in range(64)]
    assert sum(m.numel() for m in masks) > blend_rows._MOST_KEPT
    assert sum(m.numel() for m in rows._masks.values()) <= blend_rows._MOST_KEPT
    assert torch.equal(rows._mask(63, 4, torch.float32), masks[63])


def test_of_many_tokens_behind_the_passages_the_last_ones_are_asked() -> None:
    torch.manual_seed(0)
    query, keys = torch.randn(1, 4, 2000, 16), torch.randn(1, 2, 2000, 16)
    fresh, tokens = Fresh(query, (keys, keys), None), torch.arange(3, 40)
    found = attention_received(fresh, tokens, slice(40, 2000))
    assert torch.equal(found, attention_received(fresh, tokens, slice(1744, 2000)))
    assert float(found.sum()) == pytest.approx(1)


@pytest.mark.parametrize("share", [0.01, 0.15, 0.5, 0.7, 0.95])
@pytest.mark.parametrize("layers", [2, 3, 4, 12, 30, 80])
def test_a_graded_recipe_has_its_share_on_the_average(layers: int, share: float) -> None:
    recipe = Recipe.graded(share, layers)
    ends = [n for n, _ in recipe.later] + [layers]
    shares = [recipe.share, *(s for _, s in recipe.later)]
    begins = [recipe.check_layer, *ends[:-1]]
    spent = sum((e - b) * s for b, e, s in zip(begins, ends, shares, strict=True))
    assert spent / (layers - 1) == pytest.approx(share)
    assert shares == sorted(shares, reverse=True)
    assert max(shares) <= 1


@pytest.mark.parametrize("layers", [1, 2, 30])
def test_a_recipe_of_nothing_or_all_is_the_same_in_all_layers(layers: int) -> None:
    assert Recipe.graded(0.15, 1) == Recipe(0.15)
    for plain in (0.0, 1.0, None):
        assert Recipe.graded(plain, layers) == Recipe(plain)


def test_a_scattered_row_never_sees_what_comes_after_it(model: TransformersModel) -> None:
    # Two facts behind a passage, the second the opposite of the first: had any of the passage's
    # rows seen them, its KV would tell them apart.
    stop = len(HEAD) + len(TWO)
    placed = [PlacedPassage(len(HEAD), stop, passage_kv(model, ONE[: len(TWO)]))]
    kvs = []
    for fact in (ONE, [(t + 50) % 256 for t in ONE]):
        arena = Arena(model.shape, 256)
        recipe = Recipe(0.4, later=((2, 0.2),), asked=0)
        done = model.blender.run(arena, [*HEAD, *TWO, *fact, *END], placed, recipe)
        assert done.report.again_tokens == round((28 + 14 + 14) / 3)
        kvs.append(arena.snapshot(0, stop))
    assert np.allclose(kvs[0].keys, kvs[1].keys, atol=1e-5)
    assert np.allclose(kvs[0].values, kvs[1].values, atol=1e-5)


def test_what_was_blended_is_not_taken_for_the_kv_of_its_tokens(
    model: TransformersModel, passages: list[PlacedPassage]
) -> None:
    sequence = model.open_sequence(len(PROMPT) + 8, PROMPT, namespace="blended")
    sequence.blend(PROMPT, passages[1:], share=0)
    exact = passages[1].start
    other = model.open_sequence(len(PROMPT) + 8, PROMPT, namespace="blended")
    assert other.num_tokens <= exact
    assert sequence.snapshot(0, exact).num_tokens == exact
    with pytest.raises(AssertionError, match="blended KV"):
        sequence.snapshot(0, exact + 1)
    sequence.close()
    other.close()
    assert model.num_held(PROMPT, namespace="blended") <= exact


def test_a_passage_may_still_be_on_its_way(
    model: TransformersModel, passages: list[PlacedPassage]
) -> None:
    with ThreadPoolExecutor(1) as pool:
        late = [replace(p, block=pool.submit(lambda p=p: p.block)) for p in passages]
        one, other = (Arena(model.shape, 256) for _ in range(2))
        done = model.blender.run(one, PROMPT, late, Recipe(0.2))
        expected = model.blender.run(other, PROMPT, passages, Recipe(0.2))
        assert torch.equal(done.logits, expected.logits)
        lost = [replace(passages[0], block=pool.submit(lambda: make_block(7)))]
        with pytest.raises(ValueError, match="KV of 7 tokens"):
            model.blender.run(Arena(model.shape, 256), PROMPT, lost, Recipe(0.2))


def test_a_borrowed_prefix_is_read_where_it_is(
    model: TransformersModel, passages: list[PlacedPassage]
) -> None:
    lender = Arena(model.shape, len(PROMPT) + 8)
    plain_logits = plain(model)
    sequence = model.open_sequence(len(PROMPT))
    sequence.prefill(PROMPT[:5])
    lender.append(sequence.snapshot(0, 5))
    sequence.close()
    borrowed = BorrowedArena(lender, 5, len(PROMPT) + 8)
    done = model.blender.run(borrowed, PROMPT[5:], passages, Recipe(1.0))
    assert (done.logits[0] - plain_logits).abs().max() < 1e-4
    assert borrowed.num_tokens == len(PROMPT)


def test_passages_that_do_not_fit_are_refused_and_nothing_is_lost(
    model: TransformersModel, passages: list[PlacedPassage]
) -> None:
    sequence = model.open_sequence(len(PROMPT))
    wrong = [
        passages[::-1],
        [replace(passages[0], stop=passages[0].stop - 1)],
        [replace(passages[0], stop=passages[0].start)],
        [PlacedPassage(170, 240, passages[0].block)],
    ]
    for each in wrong:
        with pytest.raises(ValueError, match="a passage at"):
            sequence.blend(PROMPT, each)
    assert sequence.num_tokens == 0
    sequence.close()


FITS = {"Llama", "Llama 3 (rescaled rope)", "Qwen 2, 2.5", "Qwen 3", "Gemma", "Mixtral"}
FITS_NOT = {"Mistral": "windows", "Phi 1, 2": "positions", "Gemma 2": "windows", "GPT-2": "freed"}


KNOWN = [f for f in FAMILIES if f.name in FITS | FITS_NOT.keys()]


@pytest.mark.parametrize("family", KNOWN, ids=lambda f: f.name)
def test_a_family_is_blended_or_refused_with_a_reason(family: Family) -> None:
    llm = make_model(family)
    shape = kv_shape(llm)
    problem = problem_of(llm, shape, rotary_of(llm, shape))
    if family.name in FITS:
        assert problem is None
    else:
        assert problem is not None
        assert FITS_NOT[family.name] in problem


def test_layers_that_are_more_than_a_chain_are_refused() -> None:
    odd = make_model(Family("Granite", "full", "GraniteConfig", {"embedding_multiplier": 3.0}))
    shape = kv_shape(odd)
    assert "give other logits" in str(problem_of(odd, shape, rotary_of(odd, shape)))
