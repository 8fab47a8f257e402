"""Computing passages ahead, in a few contexts each, free of positions.

A context is the prompt's head and some other passages. Behind others, since there a passage mostly
stands: its tokens move in a common direction where others are before it, and what comes first
takes a part in the text's beginning. In several, since the mean of them is nearer to the next one
than any is. Knows nothing of stores.
"""

from collections.abc import Generator, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace

import numpy as np

from centroidkv.blend.heads import NUM_CONTEXTS, Head, TokenIds
from centroidkv.blend.passages import BlendingModel, joined
from centroidkv.blend.spans import Span
from centroidkv.kv.blocks import split
from centroidkv.placement import PlacedPassage
from centroidkv.protocols import BlendingSequence
from centroidkv.rotary import from_float32, to_float32
from centroidkv.types import FloatArray, KVBlock

# Room is made for passages of so many tokens: a longer one than before needs another arena, in
# which its context is computed again.
_ROOM_TOKENS = 256
# Passages that are held until each has been computed in all contexts.
_TOGETHER = 8

__all__ = ["computed", "placed", "prefilled"]


def computed(
    model: BlendingModel, head: Head, passages: Iterable[TokenIds], *, namespace: str
) -> Generator[list[KVBlock]]:
    """Compute passages, each for itself; yield the blocks of each, free of positions.

    Blocks of 64 tokens and a tail, as a store holds them. The KV of a context is left to the next
    passage as a request leaves that of its prompt, in an arena of the namespace: so some passages
    are computed in one context, and then in the next.

    Raises:
        ContextTooLong: A passage and the head are longer than the model's context.
    """
    waiting = list(passages)
    for start in range(0, len(waiting), _TOGETHER):
        some = waiting[start : start + _TOGETHER]
        contexts = [head.contexts(ids, most=model.context_tokens - len(ids) - 1) for ids in some]
        found: list[list[list[KVBlock]]] = [[] for _ in some]
        for number in range(NUM_CONTEXTS):
            for ids, own, blocks in zip(some, contexts, found, strict=True):
                if number < len(own):
                    blocks.append(_behind(model, own[number], ids, namespace))
        for blocks in found:
            yield [_mean(same) for same in zip(*blocks, strict=True)]


def placed(
    model: BlendingModel, head: Head, prompt: TokenIds, spans: Sequence[Span], *, namespace: str
) -> list[PlacedPassage]:
    """Compute passages of one prompt and say where they belong.

    Raises:
        ContextTooLong: See `computed`.
    """
    units = [span.unit(prompt).token_ids for span in spans]
    found = computed(model, head, units, namespace=namespace)
    return [
        PlacedPassage(span.start, span.stop, joined(blocks))
        for span, blocks in zip(spans, found, strict=True)
    ]


@contextmanager
def prefilled(
    model: BlendingModel, before: TokenIds, token_ids: TokenIds, *, namespace: str
) -> Iterator[BlendingSequence]:
    """Run a passage behind other tokens; while the body runs, a sequence holds the KV of both."""
    needed = len(before) + len(token_ids) + 1
    capacity = max(needed, min(len(before) + _ROOM_TOKENS, model.context_tokens))
    sequence = model.open_sequence(capacity, before, namespace=namespace)
    try:
        sequence.prefill((*before, *token_ids)[sequence.num_tokens :])
        yield sequence
    finally:
        sequence.close()


def _behind(
    model: BlendingModel, before: TokenIds, token_ids: TokenIds, namespace: str
) -> list[KVBlock]:
    """Compute a passage in one context; return its blocks with keys as they were before RoPE."""
    from centroidkv.models.free_keys import free_block  # brings torch

    rotary = model.rotary
    assert rotary is not None, "only a model that can be blended has its passages computed"
    parts = [(len(before) + start, len(before) + stop) for start, stop in split(len(token_ids))]
    with prefilled(model, before, token_ids, namespace=namespace) as sequence:
        return [free_block(sequence.snapshot(*part), rotary, part[0]) for part in parts]


def _mean(blocks: Sequence[KVBlock]) -> KVBlock:
    """Return the mean of the same tokens' blocks in several contexts."""
    first = blocks[0]
    if len(blocks) == 1:
        return first

    def mean(arrays: Iterable[FloatArray]) -> FloatArray:
        found: FloatArray = np.stack([to_float32(a, first.dtype) for a in arrays]).mean(0)
        return found

    keys, values = mean(b.keys for b in blocks), mean(b.values for b in blocks)
    return replace(
        first,
        keys=from_float32(keys, first.dtype),
        values=from_float32(values, first.dtype),
    )
