"""What is asked of a tokenizer, and which of its tokens end an answer."""

from transformers import PreTrainedModel, PreTrainedTokenizerBase

from centroidkv.errors import UnsupportedModel

__all__ = ["end_ids", "require_fast"]


def require_fast(tokenizer: PreTrainedTokenizerBase) -> None:
    """Refuse a tokenizer that cannot tell where in a text its tokens stand.

    Raises:
        UnsupportedModel: It is a slow one.
    """
    if not tokenizer.is_fast:
        raise UnsupportedModel(
            f"{type(tokenizer).__name__} is a slow tokenizer; token positions are needed, so "
            "load the fast one (use_fast=True)"
        )


def end_ids(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> frozenset[int]:
    """Return the tokens that end an answer, by the model's settings and its tokenizer's."""
    configured = getattr(model.generation_config, "eos_token_id", None)
    ids = configured if isinstance(configured, list) else [configured]
    return frozenset(i for i in [*ids, tokenizer.eos_token_id] if i is not None)
