"""Passages computed ahead: in several contexts, and the mean of them."""

import numpy as np
import pytest
from transformers import PreTrainedTokenizerFast

from blend_parts import blending_model
from centroidkv.blend.computing import computed
from centroidkv.blend.heads import NUM_CONTEXTS, Head
from centroidkv.blend.passages import joined
from centroidkv.models.free_keys import free_block
from centroidkv.models.transformers_model import TransformersModel
from centroidkv.types import KVBlock

HEAD = tuple(range(30, 50))
RUN_UP = tuple(tuple(range(n, n + 40)) for n in (60, 70, 80, 90, 100))
PASSAGE = tuple(range(200, 90, -1))


@pytest.fixture(scope="module")
def model(tokenizer: PreTrainedTokenizerFast) -> TransformersModel:
    return blending_model(tokenizer)


def behind(model: TransformersModel, before: tuple[int, ...], ids: tuple[int, ...]) -> KVBlock:
    sequence = model.open_sequence(len(before) + len(ids))
    sequence.prefill((*before, *ids))
    block = sequence.snapshot(len(before), sequence.num_tokens)
    sequence.close()
    assert model.rotary is not None
    return free_block(block, model.rotary, len(before))


@pytest.mark.parametrize("run_up", [(), RUN_UP[:1], RUN_UP])
@pytest.mark.parametrize("ids", [PASSAGE, RUN_UP[0]], ids=["another", "of the run-up"])
def test_the_mean_of_all_contexts(
    model: TransformersModel, run_up: tuple[tuple[int, ...], ...], ids: tuple[int, ...]
) -> None:
    head = Head(HEAD, run_up)
    groups = [[p for p in run_up[n::NUM_CONTEXTS] if p != ids] for n in range(NUM_CONTEXTS)]
    contexts = [(*HEAD, *(t for p in group for t in p)) for group in groups if group] or [HEAD]
    each = [behind(model, before, ids) for before in contexts]
    for _ in range(2):  # the second time in the arenas that the first one left
        ((*blocks,),) = computed(model, head, [ids], namespace="tests")
        assert [b.num_tokens for b in blocks][:-1] == [64] * (len(blocks) - 1)
        whole = joined(blocks)
        for name in ("keys", "values"):
            mean = np.mean([getattr(b, name) for b in each], axis=0)
            np.testing.assert_allclose(getattr(whole, name), mean, atol=1e-4)
    if len(each) > 1:
        assert np.abs(each[0].values - each[1].values).max() > 1e-2


def test_a_passage_that_leaves_no_room_is_computed_behind_the_head(
    model: TransformersModel,
) -> None:
    ids = tuple(int(t) for t in np.arange(model.context_tokens - len(HEAD) - 30) % 200)
    (blocks,) = computed(model, Head(HEAD, RUN_UP), [ids], namespace="tests")
    expected = behind(model, HEAD, ids)
    np.testing.assert_allclose(joined(blocks).values, expected.values, atol=1e-4)
