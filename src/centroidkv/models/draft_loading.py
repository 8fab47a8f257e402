"""Giving a model a small one to guess its tokens: loading, comparing vocabularies, a first measure.

Knows where models come from and that both must have the same tokens; not how guesses are used.
"""

import time
from pathlib import Path
from typing import Any

from centroidkv.errors import UnsupportedModel
from centroidkv.models.draft_model import DraftModel
from centroidkv.models.loading import load_model, wrap_model
from centroidkv.models.transformers_model import TransformersModel

STOCK_PROMPT = "Write a short letter to a customer whose card was lost."
STOCK_TOKENS = 16
STOCK_S = 2.0  # most seconds that the large model answers for

__all__ = ["attach_draft_model"]


def attach_draft_model(
    model: Any,
    source: Any,
    *,
    device: str | None = None,
    dtype: str | None = None,
    arena_budget_bytes: int = 128 << 20,
    max_batch: int = 16,
) -> None:
    """Let a small model guess the tokens of `model`, for every engine that uses `model`.

    Both answer one stock question at once, of which times and a first rate of agreement are
    taken; that takes about as long as `STOCK_TOKENS` steps of each, two seconds as a rule.

    Args:
        model: The large model, whose `draft_model` is set.
        source: The small one: what `load_model` takes, or a loaded model of the same tokenizer.
        device: Where it runs; as for the large one.
        dtype: A torch dtype's name; as for the large one.
        arena_budget_bytes: Memory that may be kept for its arenas not in use.
        max_batch: How many of its sequences one forward may run; as for the large one.

    Raises:
        ModelNotFound: There is no such model.
        UnsupportedModel: The two have different vocabularies, or one is no transformers model.
    """
    if not isinstance(model, TransformersModel):
        raise UnsupportedModel(
            f"draft_model needs a transformers model to guess for, not {type(model).__name__}; "
            "leave draft_model out"
        )
    if isinstance(source, (str, Path)):
        small = load_model(
            source,
            device=device,
            dtype=dtype,
            arena_budget_bytes=arena_budget_bytes,
            max_batch=max_batch,
        )
    elif isinstance(source, TransformersModel):
        small = source
    else:
        small = wrap_model(
            source,
            model.tokenizer,
            arena_budget_bytes=arena_budget_bytes,
            max_batch=max_batch,
        )
    _require_same_tokens(model, small, source)
    draft = DraftModel(small, vocabulary=len(model.tokenizer))
    _compare(model, draft)
    model.draft_model = draft


def _require_same_tokens(model: TransformersModel, small: TransformersModel, source: Any) -> None:
    name = repr(str(source)) if isinstance(source, (str, Path)) else type(small.model).__name__
    mine, theirs = model.tokenizer.get_vocab(), small.tokenizer.get_vocab()
    if mine != theirs:
        odd = min(number for _, number in mine.items() ^ theirs.items())
        raise UnsupportedModel(
            f"draft_model {name} has another vocabulary ({len(theirs)} tokens, the model "
            f"{len(mine)}; token {odd} differs); name a model of the same tokenizer"
        )
    rows = int(small.model.config.get_text_config().vocab_size)
    if rows < len(mine):
        raise UnsupportedModel(
            f"draft_model {name} knows {rows} tokens, the model's tokenizer has {len(mine)}; "
            "name a model of the same tokenizer"
        )


def _compare(model: TransformersModel, draft: DraftModel) -> None:
    """Let both answer, the small one behind the large one's tokens; note times and agreement."""
    prompt = model.encode(STOCK_PROMPT).token_ids
    capacity = len(prompt) + STOCK_TOKENS
    if capacity > min(model.context_tokens, draft.model.context_tokens):
        return
    large, small = model.open_sequence(capacity), draft.model.open_sequence(capacity)
    try:
        begin = time.perf_counter()
        large.prefill(prompt)
        small.prefill(prompt)
        for _ in range(STOCK_TOKENS):
            token = int(large.logits.argmax())
            guess = int(small.logits[: draft.vocabulary].argmax())
            model.pace.guessed("model", is_right=guess == token)
            if model.is_end(token) or time.perf_counter() - begin > STOCK_S:
                return
            large.prefill([token])
            small.prefill([token])
    finally:
        large.close()
        small.close()
