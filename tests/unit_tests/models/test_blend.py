"""Blended prefills: equal to a plain one where all is computed, and to the method where not."""

from collections.abc import Iterator
from dataclasses import replace
from types import SimpleNamespace
from typing import Any, cast

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from transformers import PreTrainedTokenizerFast
from transformers.models.llama.modeling_llama import apply_rotary_pos_emb

from centroidkv.config import Sampling
from centroidkv.models import blend_rows
from centroidkv.models.arena import Arena, kv_shape
from centroidkv.models.blend import BlendReport
from centroidkv.models.blend_choice import Recipe
from centroidkv.models.blend_rows import Rows
from centroidkv.models.blend_trial import problem_of
from centroidkv.models.free_keys import PlacedPassage, Placement, free_block, turned_block
from centroidkv.models.lending import BorrowedArena, SequenceKV
from centroidkv.models.loading import wrap_model
from centroidkv.models.packed import attention_paid
from centroidkv.models.positions import rotary_of
from centroidkv.models.transformers_model import TransformersModel
from centroidkv.types import KVBlock
from model_families import FAMILIES, Family, make_model
from small_parts import make_block

HEAD = [5, 9, 2, 77, 31]
ONE, TWO = [(11 * i + 3) % 256 for i in range(90)], [(17 * i + 8) % 256 for i in range(70)]
END = [40, 41, 42, 43, 44, 45]
BY_VALUES = Recipe(0.2, attention=False, check="values")
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
    recipe = replace(Recipe.of(share), bound=1e-12)
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
    model: TransformersModel,
    passages: list[PlacedPassage],
    places: torch.Tensor,
    check_layer: int = -1,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Blend by the book: all scores of all rows, masked by position, KV heads repeated.

    Returns the logits, and the attention that the end pays to each token in the layers asked.
    """
    body: Any = model.model.model
    assert model.rotary is not None
    positions = rows = torch.arange(len(PROMPT))
    is_kept = torch.ones(len(PROMPT), dtype=torch.bool)
    for p in passages:
        is_kept[p.start : p.stop] = False
    is_kept[places] = True
    hidden = body.embed_tokens(torch.tensor([PROMPT]))
    cos, sin = body.rotary_emb(hidden, positions[None])
    attended = torch.zeros(len(PROMPT))
    for number, layer in enumerate(body.layers):
        attention = layer.self_attn
        if check_layer < 0 and number == 0:
            rows = is_kept.nonzero()[:, 0]
            hidden = hidden[:, rows]
        shape = (1, len(rows), -1, attention.head_dim)
        normed = layer.input_layernorm(hidden)
        query, keys, values = (
            part(normed).view(shape).transpose(1, 2)
            for part in (attention.q_proj, attention.k_proj, attention.v_proj)
        )
        query, keys = apply_rotary_pos_emb(query, keys, cos[:, rows], sin[:, rows])
        if number <= check_layer:
            all_keys, all_values = keys, values
        else:
            all_keys, all_values = (torch.zeros(1, 2, len(PROMPT), 16) for _ in range(2))
            for p in passages:
                turned = turned_block(p.block, model.rotary, np.arange(p.start, p.stop))
                all_keys[0, :, p.start : p.stop] = torch.from_numpy(turned.keys[number])
                all_values[0, :, p.start : p.stop] = torch.from_numpy(turned.values[number].copy())
            all_keys[:, :, rows], all_values[:, :, rows] = keys, values
        if number == check_layer:
            rows = is_kept.nonzero()[:, 0]
            hidden, query = hidden[:, rows], query[:, :, rows]
        repeated = [x.repeat_interleave(2, 1) for x in (all_keys, all_values)]
        scores = query @ repeated[0].mT * attention.scaling
        shares = scores.masked_fill(positions > rows[:, None], float("-inf")).softmax(-1)
        if number < 3:  # two thirds of four layers
            attended += shares[0, :, -len(END) :].sum((0, 1))
        output = (shares @ repeated[1]).transpose(1, 2).reshape(1, len(rows), -1)
        hidden = hidden + attention.o_proj(output)
        hidden = hidden + layer.mlp(layer.post_attention_layernorm(hidden))
    logits: torch.Tensor = model.model.lm_head(body.norm(hidden[:, -1]))[0]
    return logits, attended


def looked_at(model: TransformersModel, passages: list[PlacedPassage]) -> torch.Tensor:
    """Return the attention that the prompt's end pays to placed tokens, by the book."""
    _, attended = dense(model, passages, torch.tensor([], dtype=torch.long))
    is_placed = torch.zeros(len(PROMPT))
    for p in passages:
        is_placed[p.start : p.stop] = 1
    return attended * is_placed


def holding(model: TransformersModel, lent: int, own: int) -> SequenceKV:
    """Return what holds the prompt's first tokens, some of them lent by another arena."""
    sequence, size = model.open_sequence(len(PROMPT)), len(PROMPT) + 8
    if lent + own:
        sequence.prefill(PROMPT[: lent + own])
    kv: SequenceKV = Arena(model.shape, size)
    if lent:
        kv.append(sequence.snapshot(0, lent))
        kv = BorrowedArena(kv, lent, size)
    if own:
        kv.append(sequence.snapshot(lent, lent + own))
    sequence.close()
    return kv


@torch.inference_mode()
@pytest.mark.parametrize(("lent", "own"), [(0, 0), (0, 5), (5, 0), (3, 2), (0, 3), (3, 0)])
@pytest.mark.parametrize("rows", [1, 4])
def test_what_the_question_looks_at_is_computed_again(
    model: TransformersModel, passages: list[PlacedPassage], lent: int, own: int, rows: int
) -> None:
    held, answer = lent + own, [90, 91, 92][: rows - 1]
    kv = holding(model, lent, own)
    done = model.blender.run(kv, [*PROMPT[held:], *answer], passages, Recipe(0.2), rows=rows)
    places = looked_at(model, passages).argsort()[-32:]
    expected, _ = dense(model, passages, places)
    assert done.report == BlendReport(160, 32, len(PROMPT) + rows - 1 - held - 160)
    assert (done.logits[0] - expected).abs().max() < 1e-4
    assert (done.logits[0] - plain(model)).abs().max() > 1e-3


@torch.inference_mode()
def test_attention_and_a_check_choose_together(
    model: TransformersModel, passages: list[PlacedPassage]
) -> None:
    whole = model.open_sequence(len(PROMPT))
    whole.prefill(PROMPT)
    behind = passages[1]
    fresh = whole.snapshot(behind.start, behind.stop).values[1]
    whole.close()
    far = torch.from_numpy(np.square(fresh - behind.block.values[1]).sum((0, 2)))
    scores = far * looked_at(model, passages)[behind.start : behind.stop]
    assert set(scores.argsort()[-64:].tolist()) != set(far.argsort()[-64:].tolist())
    recipe = Recipe(0.4, check="values", later=((2, 0.2),))
    arena = Arena(model.shape, len(PROMPT))
    done = model.blender.run(arena, PROMPT, passages, replace(recipe, later=()))
    expected, _ = dense(model, passages, scores.argsort()[-64:] + behind.start, check_layer=1)
    assert (done.logits[0] - expected).abs().max() < 1e-4
    fewer = model.blender.run(Arena(model.shape, len(PROMPT)), PROMPT, passages, recipe)
    assert fewer.report.again_tokens == round((64 + 32 + 32) / 3)


@torch.inference_mode()
def test_a_bound_leaves_no_more_than_it_says(
    model: TransformersModel, passages: list[PlacedPassage]
) -> None:
    found = []
    for bound in (1e-1, 1e-2, 1e-3, 1e-5):
        arena = Arena(model.shape, len(PROMPT))
        recipe = replace(Recipe.of(None), bound=bound)
        report = model.blender.run(arena, PROMPT, passages, recipe).report
        assert report.uncorrected is not None
        assert report.uncorrected <= bound * (1 + 1e-4)
        found.append(report.again_tokens)
    assert found == sorted(found)
    assert 0 < found[1] < found[-1] <= len(ONE)


@torch.inference_mode()
def test_a_passage_at_the_end_cut_or_unseen_is_blended_too(
    model: TransformersModel, passages: list[PlacedPassage]
) -> None:
    one = passages[1]
    ends = PROMPT[: one.stop]
    cut = PlacedPassage(9, 75, passages[0].block.part(4, 70))
    for prompt, held, placed in [
        (ends, 0, passages),
        (PROMPT, 9, [cut, one]),
        (PROMPT, 0, passages[:1]),
    ]:
        kv = holding(model, 0, held)
        done = model.blender.run(kv, prompt[held:], placed, Recipe(0.9))
        num = sum(p.stop - p.start for p in placed) - (placed[-1].stop == len(prompt))
        assert (done.report.placed_tokens, done.report.again_tokens) == (num, round(0.9 * num))
        assert (done.logits[0] - plain(model, prompt)).abs().max() < 0.3
        assert done.logits[0].argmax() == plain(model, prompt).argmax()


def test_layers_are_run_no_more_often_than_a_choice_needs(
    model: TransformersModel, passages: list[PlacedPassage]
) -> None:
    runs: list[int] = []
    body: Any = model.model.model
    hooks = [
        layer.register_forward_pre_hook(lambda _, args: runs.append(args[0].shape[1]))
        for layer in body.layers
    ]
    num = {}
    for share in (0.0, 0.001, 0.2, 0.02, 0.999, 1.0):
        runs.clear()
        arena = Arena(model.shape, len(PROMPT))
        num[share] = model.blender.run(arena, PROMPT, passages, Recipe(share)).report.again_tokens
        # Few are computed again: running all others twice would cost more than a check.
        expected = {0.2: [13] * 3 + [45] * 4, 0.02: [173] * 2 + [16] * 3}
        rows = 13 if num[share] == 0 else 173
        assert runs == expected.get(share, [rows] * 4)
    for hook in hooks:
        hook.remove()
    assert num == {0.0: 0, 0.001: 0, 0.2: 32, 0.02: 3, 0.999: 160, 1.0: 160}


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_attention_is_counted_in_float32(dtype: torch.dtype) -> None:
    torch.manual_seed(0)
    query = (torch.randn(40, 2, 3, 64) * 4 + 6).to(dtype)  # as large as with biases
    keys = (torch.randn(1, 2, 500, 64) * 4 + 6).to(dtype)
    rows = query.float().transpose(0, 1).reshape(2, 120, 64)
    scores = rows @ keys[0].float().mT / 8
    total = scores.logsumexp(-1).reshape(2, 40, 3).transpose(0, 1)
    paid = attention_paid(query, total, keys[:, :, :300], None)
    expected = scores.softmax(-1).sum((0, 1))[:300]
    assert torch.allclose(paid, expected, atol=1e-3)
    assert 0 < float(paid.sum()) < 240


@torch.inference_mode()
def test_what_deviates_most_is_computed_again(
    model: TransformersModel, passages: list[PlacedPassage]
) -> None:
    sequence, whole = (model.open_sequence(len(PROMPT)) for _ in range(2))
    done = model.blender.run(sequence._open, PROMPT, passages, BY_VALUES)
    whole.prefill(PROMPT)
    assert done.report.again_tokens == 32
    # The first passage stands where it was computed; of the second, what deviates most.
    behind = passages[1]
    fresh = whole.snapshot(behind.start, behind.stop).values[1]
    for each in (sequence, whole):
        each.close()
    worst = np.square(fresh - behind.block.values[1]).sum((0, 2)).argsort()[-32:]
    expected, _ = dense(model, passages, torch.from_numpy(worst + behind.start), check_layer=1)
    assert (done.logits[0] - expected).abs().max() < 1e-4
    assert (done.logits[0] - plain(model)).abs().max() > 1e-3


def test_what_was_computed_is_not_turned_like_what_is_placed(
    model: TransformersModel, passages: list[PlacedPassage]
) -> None:
    arena = Arena(model.shape, len(PROMPT))
    assert model.rotary is not None
    placement = Placement(arena, model.rotary, passages, len(PROMPT))
    assert arena.values[1].any()
    placement.turn(1)
    assert arena.keys[1].any()
    arena.keys[1].fill_(1)
    placement.turn(1)
    assert (arena.keys[1] == 1).all()


def test_each_passage_is_written_before_the_next_is_asked_for(
    model: TransformersModel, passages: list[PlacedPassage]
) -> None:
    arena = Arena(model.shape, len(PROMPT))
    written: list[bool] = []

    def loading() -> Iterator[PlacedPassage]:
        for number, passage in enumerate(passages):
            written.extend(
                bool(arena.values[0, 0, :, p.start : p.stop].any()) for p in passages[:number]
            )
            yield passage

    done = model.blender.run(arena, PROMPT, loading(), Recipe(0.2))
    again = Arena(model.shape, len(PROMPT))
    expected = model.blender.run(again, PROMPT, passages, Recipe(0.2))
    assert written == [True]
    assert torch.equal(done.logits, expected.logits)


def test_what_ends_loading_leaves_the_sequence_as_it_was(
    model: TransformersModel, passages: list[PlacedPassage]
) -> None:
    arena = holding(model, 0, 5)

    def broken() -> Iterator[PlacedPassage]:
        yield passages[0]
        raise OSError("gone")

    with pytest.raises(OSError, match="gone"):
        model.blender.run(arena, PROMPT[5:], broken(), Recipe(0.2))
    assert arena.num_tokens == 5
    done = model.blender.run(arena, PROMPT[5:], passages, Recipe(1.0))
    assert (done.logits[0] - plain(model)).abs().max() < 1e-4


def test_masks_that_are_kept_have_a_bound(
    model: TransformersModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(blend_rows, "_MOST_KEPT", 1 << 17)
    rows = Rows(Arena(model.shape, 4096), torch.arange(0, 4096, 4))
    tiles = [tile for tile in rows._tiles if tile.is_masked]
    masks = [rows._mask(tile, 4, torch.float32) for tile in tiles]
    assert sum(m.numel() for m in masks) > blend_rows._MOST_KEPT
    assert sum(m.numel() for m in rows._masks.values()) <= blend_rows._MOST_KEPT
    assert torch.equal(rows._mask(tiles[-1], 4, torch.float32), masks[-1])


@given(st.sets(st.integers(0, 3000), min_size=1, max_size=700))
def test_tiles_hold_what_each_row_sees_once(places: set[int]) -> None:
    at = sorted(places)
    seen: list[list[tuple[int, int]]] = [[] for _ in at]
    for tile in blend_rows._tiles(at):
        for row in range(tile.start, tile.stop):
            assert tile.opens == (not seen[row])
            end = min(tile.end, at[row] + 1) if tile.is_masked else tile.end
            assert end > tile.first  # a row that saw nothing would have no weights
            seen[row].append((tile.first, end))
    for row, parts in enumerate(seen):
        assert parts[0][0] == 0
        assert [stop for _, stop in parts] == [*(start for start, _ in parts[1:]), at[row] + 1]


def test_of_many_tokens_behind_the_passages_the_last_ones_are_asked(
    model: TransformersModel,
) -> None:
    torch.manual_seed(0)
    arena, layer = Arena(model.shape, 2000), SimpleNamespace(layer_idx=0)
    arena.keys[0].normal_()
    query, found = torch.randn(1, 4, 1960, 16), []
    for first in (0, 1960 - 64):
        rows = Rows(arena, torch.arange(40, 2000))
        rows.watch(slice(3, 40), slice(first, None))
        rows.attend(cast("Any", layer), query)
        found.append(rows.watched)
    assert torch.equal(*found)
    assert 0 < float(found[0].sum()) < 64 * 4


def test_a_recipe_says_which_tokens_are_chosen() -> None:
    for wrong in ({"share": None}, {"later": ((2, 0.1),)}, {"attention": False}):
        with pytest.raises(ValueError, match="check"):
            Recipe(**cast("Any", wrong))
    assert Recipe.of(0.3) == Recipe(0.3)
    assert Recipe(0.3).fit(100, 45) == Recipe(0.3)
    assert Recipe(0.3).fit(100, 46) == Recipe(0.3, attention=False, check="values")


def test_a_scattered_row_never_sees_what_comes_after_it(model: TransformersModel) -> None:
    # Two facts behind a passage, the second the opposite of the first: had any of the passage's
    # rows seen them, its KV would tell them apart.
    stop = len(HEAD) + len(TWO)
    placed = [PlacedPassage(len(HEAD), stop, passage_kv(model, ONE[: len(TWO)]))]
    kvs = []
    for fact in (ONE, [(t + 50) % 256 for t in ONE]):
        arena = Arena(model.shape, 256)
        recipe = replace(BY_VALUES, share=0.4, later=((2, 0.2),))
        done = model.blender.run(arena, [*HEAD, *TWO, *fact, *END], placed, recipe)
        assert done.report.again_tokens == round((28 + 14 + 14) / 3)
        kvs.append(arena.snapshot(0, stop))
    assert np.allclose(kvs[0].keys, kvs[1].keys, atol=1e-5)
    assert np.allclose(kvs[0].values, kvs[1].values, atol=1e-5)


def test_what_was_blended_is_not_taken_for_the_kv_of_its_tokens(
    model: TransformersModel, passages: list[PlacedPassage]
) -> None:
    sequence = model.open_sequence(len(PROMPT) + 8, PROMPT, namespace="blended")
    exact = passages[1].start
    sequence.prefill(PROMPT[:exact])
    sequence.blend(PROMPT[exact:], passages[1:], share=0)
    other = model.open_sequence(len(PROMPT) + 8, PROMPT, namespace="blended")
    assert other.num_tokens <= exact
    assert sequence.snapshot(0, exact).num_tokens == exact
    with pytest.raises(AssertionError, match="blended KV"):
        sequence.snapshot(0, exact + 1)
    sequence.close()
    other.close()
    assert model.num_held(PROMPT, namespace="blended") <= exact


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
        [replace(passages[0], block=make_block(7))],
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
