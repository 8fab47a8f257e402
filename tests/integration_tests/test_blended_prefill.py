"""The real small model: blended prefills against full ones."""

import json

import bank
import torch

from centroidkv.blend.computing import computed
from centroidkv.blend.heads import Head
from centroidkv.blend.passages import joined
from centroidkv.models.blend_choice import Recipe
from centroidkv.models.free_keys import PlacedPassage
from centroidkv.models.transformers_model import TransformersModel

HEAD = "You answer questions about a bank from the context.\n\nContext:\n\n"
END = "Question: What does it cost to get a new card?\nAnswer:"


def tokens(model: TransformersModel, text: str) -> list[int]:
    return list(model.tokenizer(text, add_special_tokens=False)["input_ids"])


@torch.inference_mode()
def test_a_share_brings_a_blend_near_a_full_prefill_and_all_to_it(
    smollm: TransformersModel,
) -> None:
    assert smollm.blend_problem() is None
    lines = (bank.DATA / "passages.jsonl").read_text("utf-8").splitlines()
    texts = [json.loads(line)["text"] for line in lines[:9]]
    head, end = tokens(smollm, HEAD), tokens(smollm, END)
    units = [tuple(tokens(smollm, text + "\n\n")) for text in texts]
    shown, others = units[:5], units[5:]
    placed, prompt = [], list(head)
    behind = computed(smollm, Head(tuple(head), tuple(others)), shown, namespace="tests")
    for ids, blocks in zip(shown, behind, strict=True):
        placed.append(PlacedPassage(len(prompt), len(prompt) + len(ids), joined(blocks)))
        prompt += ids
    prompt += end
    sequence = smollm.open_sequence(len(prompt))
    sequence.prefill(prompt)
    true = sequence.logits.clone()
    sequence.close()
    apart = []
    for share in (0.0, 0.15, 1.0):
        sequence = smollm.open_sequence(len(prompt))
        sequence.prefill(head)
        done = smollm.blender.run(sequence._open, prompt[len(head) :], placed, Recipe(share))
        sequence.close()
        shares, found = true.log_softmax(-1), done.logits[0].log_softmax(-1)
        apart.append(float((shares.exp() * (shares - found)).sum()))
    assert (done.logits[0] - true).abs().max() < 1e-4
    assert apart[1] < apart[0]
    assert apart[1] < 0.05, apart
