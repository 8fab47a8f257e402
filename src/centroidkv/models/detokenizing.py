"""From token ids back to text, and what a model keeps between requests: for export and forgetting.

Knows neither stores nor tenants. What is no model of transformers has no text and keeps nothing.
"""

from collections.abc import Sequence
from typing import Any

__all__ = ["forget_arenas", "kept_arenas", "text_of"]


def text_of(model: object, token_ids: Sequence[int]) -> str | None:
    """Return the text of tokens, special ones included; None where the model cannot tell."""
    tokenizer: Any = getattr(_inner(model), "tokenizer", None)
    if tokenizer is None:
        return None
    text: str = tokenizer.decode(
        list(token_ids), skip_special_tokens=False, clean_up_tokenization_spaces=False
    )
    return text


def kept_arenas(model: object, namespace: str) -> list[tuple[int, ...]]:
    """Return the token ids whose KV idle arenas of a namespace hold."""
    return [ids for arenas in _pools(model) for ids in arenas.held(namespace)]


def forget_arenas(model: object, namespace: str) -> int:
    """Let go of the idle arenas of a namespace; return how many."""
    return sum(arenas.forget(namespace) for arenas in _pools(model))


def _inner(model: object) -> Any:
    """Return the transformers model that runs, behind one that computes on a grid."""
    inner: Any = model
    return inner if hasattr(inner, "tokenizer") else getattr(inner, "model", inner)


def _pools(model: object) -> list[Any]:
    inner = _inner(model)
    draft = getattr(inner, "draft_model", None)
    owners = [inner, draft.model if draft is not None else None]
    return [o.arenas for o in owners if hasattr(o, "arenas")]
