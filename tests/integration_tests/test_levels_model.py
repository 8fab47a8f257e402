"""The levels on the real model: sizes, and what they change in the next tokens' distributions."""

import numpy as np
import torch

from centroidkv.kv.codec import LEVELS, BlockCoder, block_bytes, parse_block
from centroidkv.models.transformers_model import TransformersModel
from centroidkv.types import KVBlock

PROMPT = (
    "A lost card is blocked in the app under Cards, Block, or by phone at any hour. A new card "
    "costs five euros and comes within three working days. Transfers within the country arrive on "
    "the next working day, abroad within four. Standing orders can be changed until the evening "
    "before. An overdraft is agreed in the branch and costs nine per cent a year. "
)
# Half of what is asked of them on long prompts, twice the divergence: this one is short.
LEAST_RATIO = {"q8": 2.0, "q5k4v": 4.0, "q4": 4.4, "q3": 5.2}
MOST_KL = {"q8": 0.0006, "q5k4v": 0.01, "q4": 0.02, "q3": 0.06}


def coded(block: KVBlock, coder: BlockCoder) -> tuple[KVBlock, int]:
    parts, size = [], 0
    for start in range(0, block.num_tokens, 64):
        part = block.part(start, start + 64)
        ids = ("a" * 64, "b" * 64, "c" * 64)
        raw = block_bytes(part, ids=ids, token_ids=range(part.num_tokens), coder=coder)
        parts.append(parse_block(raw, "a block").block)
        size += len(raw)
    keys = np.concatenate([p.keys for p in parts], axis=2)
    values = np.concatenate([p.values for p in parts], axis=2)
    return KVBlock(keys, values, block.dtype), size


def test_levels_keep_their_promises_on_the_bundled_model(smollm: TransformersModel) -> None:
    model = smollm
    ids = model.encode(PROMPT + "Question: how do I block a card, and what does it cost?").token_ids
    known, following = ids[:-24], ids[-24:]
    sequence = model.open_sequence(len(ids) + 1)
    sequence.prefill(known)
    block = sequence.snapshot(0, len(known))
    sequence.close()

    def log_probs(block: KVBlock) -> torch.Tensor:
        sequence = model.open_sequence(len(ids) + 1)
        sequence.restore([block])
        with torch.inference_mode():
            rows = model.forward(following, sequence._open, rows=len(following))
            found = torch.log_softmax(rows.double(), -1)
        sequence.close()
        return found

    exact = log_probs(block)
    for level in LEVELS[1:]:
        found, size = coded(block, BlockCoder(level, model.rotary))
        divergence = float((exact.exp() * (exact - log_probs(found))).sum(-1).mean())
        ratio = 2 * (block.keys.size + block.values.size) / size
        assert divergence <= MOST_KL[level], (level, divergence)
        assert ratio >= LEAST_RATIO[level], (level, ratio)
