"""From what users pass to what the engine works with: models, embedders, messages.

Models and embedders are imported here, on use: importing the package loads neither.
"""

from collections.abc import Iterable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from centroidkv.config import EngineConfig
from centroidkv.errors import ConfigError
from centroidkv.precision.levels import named_precision
from centroidkv.protocols import CausalModel, Embedder
from centroidkv.types import Message, valid_text

__all__ = ["as_messages", "open_embedder", "open_model"]


def as_messages(prompt: Any) -> str | Sequence[Message]:
    """Accept text, messages, or role-and-content mappings.

    Raises:
        ConfigError: Something else is among the messages.
    """
    if isinstance(prompt, str):
        return valid_text(prompt)
    if not isinstance(prompt, Iterable):
        raise ConfigError(f"the prompt must be a text or messages, not {prompt!r}")
    turns = []
    for turn in prompt:
        if isinstance(turn, Message):
            turns.append(replace(turn, content=valid_text(turn.content)))
        elif isinstance(turn, dict) and {"role", "content"} <= turn.keys():
            turns.append(Message(str(turn["role"]), valid_text(str(turn["content"]))))
        else:
            raise ConfigError(f"a message needs a role and a content, found {turn!r}")
    return turns


def open_model(model: Any, tokenizer: Any, config: EngineConfig) -> CausalModel:
    """Load a model by name or path, or wrap a loaded one; a `CausalModel` is taken as it is.

    A draft model is given to the model, and so to all engines that use it.

    Raises:
        ConfigError: A loaded model is to be quantised or placed; `bitwise` is set, which cannot be
            promised for a model that is not ours; there is no such KV precision.
    """
    named_precision(config.kv_precision)  # a wrong name is said before a model is loaded
    opened = _opened(model, tokenizer, config)
    if config.bitwise and opened.grid_tokens <= 1:
        from centroidkv.models.grid import GridModel

        return GridModel(opened)
    if config.draft_model is not None:
        from centroidkv.models.draft_loading import attach_draft_model

        attach_draft_model(
            opened,
            config.draft_model,
            device=config.device,
            dtype=config.dtype,
            arena_budget_bytes=config.draft_arena_budget_bytes,
            max_batch=config.max_running,
        )
    return opened


def _opened(model: Any, tokenizer: Any, config: EngineConfig) -> CausalModel:
    if isinstance(model, CausalModel):
        return model
    from centroidkv.models.loading import load_model, wrap_model

    if isinstance(model, (str, Path)):
        return load_model(
            model,
            device=config.device,
            dtype=config.dtype,
            device_map=config.device_map,
            quantization=config.quantization,
            arena_budget_bytes=config.arena_budget_bytes,
            today=config.pinned_date,
            max_batch=config.max_running,
        )
    if config.quantization is not None or config.device_map is not None:
        raise ConfigError(
            "quantization and device_map are for models that are loaded by name; "
            "give them to from_pretrained"
        )
    return wrap_model(
        model,
        tokenizer,
        arena_budget_bytes=config.arena_budget_bytes,
        today=config.pinned_date,
        max_batch=config.max_running,
    )


def open_embedder(embedder: Any, config: EngineConfig) -> Embedder:
    """Load an embedder by name or path, or wrap a loaded one; an `Embedder` is taken as it is."""
    if isinstance(embedder, Embedder):
        return embedder
    from centroidkv.routing.e5 import E5_MULTILINGUAL, E5Embedder
    from centroidkv.routing.embedder import SentenceBertEmbedder

    if embedder == E5_MULTILINGUAL:
        return E5Embedder.load()
    if isinstance(embedder, (str, Path)):
        return SentenceBertEmbedder.load(embedder, device=config.device)
    return SentenceBertEmbedder.wrap(embedder)
