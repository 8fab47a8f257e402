"""What takes the place of a user's model and retriever, and of what is bound to them."""

from collections.abc import Mapping
from typing import Any, TypeVar

from langchain_core.language_models import BaseChatModel, BaseLanguageModel
from langchain_core.language_models.llms import BaseLLM
from langchain_core.retrievers import BaseRetriever
from langchain_core.runnables import (
    Runnable,
    RunnableBinding,
    RunnableBranch,
    RunnableSequence,
    RunnableWithFallbacks,
)
from langchain_core.runnables.base import RunnableEach
from langchain_core.runnables.configurable import (
    RunnableConfigurableAlternatives,
    RunnableConfigurableFields,
)
from langchain_core.runnables.retry import RunnableRetry
from pydantic import ValidationError

from centroidkv.engine import Engine
from centroidkv.errors import ConfigError, UnsupportedChain
from centroidkv.langchain.chat import ChatCentroidKV
from centroidkv.langchain.llm import CentroidKVLLM
from centroidkv.langchain.retriever import CentroidKVRetriever
from centroidkv.langchain.settings import ModelSettings

MODELS = "ChatCentroidKV(engine=engine) or CentroidKVLLM(engine=engine)"
RETRIEVER = "CentroidKVRetriever(engine=engine, base=...)"

# Fields of a model that mean the same on ours.
CARRIED = (
    "max_tokens",
    "temperature",
    "top_p",
    "seed",
    "stop",
    "streaming",
    "output_version",
    "cache",
    "callbacks",
    "metadata",
    "name",
    "tags",
    "verbose",
)
# LangChain's own arguments of a call, which it takes out itself.
_LANGCHAINS_OWN = {"stop", "ls_structured_output_format"}

OurModel = TypeVar("OurModel", bound=ModelSettings)

__all__ = [
    "CARRIED",
    "MODELS",
    "RETRIEVER",
    "bound_to",
    "model_like",
    "moved",
    "reached",
    "retriever_around",
]


def model_like(old: BaseLanguageModel[Any], engine: Engine) -> ChatCentroidKV | CentroidKVLLM:
    """Return our model of the same kind, with the settings of the old one that mean the same.

    Raises:
        UnsupportedChain: It is neither a chat model nor an LLM, or has a setting ours refuses.
    """
    if not isinstance(old, BaseChatModel | BaseLLM):
        raise UnsupportedChain(
            f"{type(old).__name__} is neither a chat model nor an LLM of langchain-core",
            instead=f"construct {MODELS} in its place by hand",
        )
    kind = ChatCentroidKV if isinstance(old, BaseChatModel) else CentroidKVLLM
    settings = _settings(old, set(kind.model_fields))
    try:
        return kind(engine=engine, **settings)
    except ValidationError as error:
        refused = "; ".join(": ".join([*map(str, e["loc"]), e["msg"]]) for e in error.errors())
        raise UnsupportedChain(
            f"{type(old).__name__} has settings that {kind.__name__} does not take ({refused})",
            instead=f"construct {kind.__name__}(engine=engine, ...) in its place by hand",
        ) from error


def _settings(old: object, known: set[str]) -> dict[str, Any]:
    found = {name: getattr(old, name, None) for name in CARRIED if name in known}
    if not _is_set(found["max_tokens"]):
        found["max_tokens"] = getattr(old, "max_new_tokens", None)  # Hugging Face's name for it
    if isinstance(found["stop"], str):
        found["stop"] = [found["stop"]]
    return {name: _own(value) for name, value in found.items() if _is_set(value)}


def _is_set(value: object) -> bool:
    """Whether a setting says something; llama.cpp and Ollama write -1 for "no limit", "any"."""
    if isinstance(value, int | float):
        return value >= 0
    return value is not None and value != [] and value != ""


def _own(value: Any) -> Any:
    """Copy what the old model may change later."""
    return value.copy() if isinstance(value, list | dict) else value


def moved(model: OurModel, engine: Engine) -> OurModel:
    """Return a model of ours on `engine`: itself, if it is there already."""
    if model.kv is engine:
        return model
    return model.model_copy(update={"engine": engine, "model": None, "store": None})


def retriever_around(base: BaseRetriever, engine: Engine) -> CentroidKVRetriever:
    """Return our retriever around another, or around what one of ours is around."""
    if isinstance(base, CentroidKVRetriever):
        return base if base.engine is engine else base.model_copy(update={"engine": engine})
    return CentroidKVRetriever(
        engine=engine,
        base=base,
        name=base.name,
        tags=_own(base.tags),
        metadata=_own(base.metadata),
    )


def bound_to(model: ModelSettings, arguments: Mapping[str, Any]) -> dict[str, Any]:
    """Return arguments that were bound to an old model as ours takes them.

    Raises:
        UnsupportedChain: Ours does not know one, or its value is out of range.
    """
    rest = {name: value for name, value in arguments.items() if name not in _LANGCHAINS_OWN}
    ours = dict(arguments)
    try:
        if "tools" in rest and isinstance(model, ChatCentroidKV):
            offered = {name: rest.pop(name) for name in ("tools", "tool_choice") if name in rest}
            binding = model.bind_tools(**offered)
            ours |= binding.kwargs if isinstance(binding, RunnableBinding) else {}
        model.chunks("?", None, None, rest)  # refuses what it does not know; nothing is run
    except ConfigError as error:
        raise UnsupportedChain(
            f"{', '.join(sorted(arguments))} bound to a model: {error}",
            instead="put what our models do not know into the prompt or a parser",
        ) from error
    return ours


def reached(step: Runnable[Any, Any]) -> list[ModelSettings]:
    """Return the models that get the arguments which a step is called with."""
    inner: list[Any] = []
    match step:
        case ModelSettings():
            return [step]
        case RunnableSequence():
            inner = [step.first]
        case RunnableBinding() | RunnableRetry() | RunnableEach():
            inner = [step.bound]
        case RunnableWithFallbacks():
            inner = [step.runnable, *step.fallbacks]
        case RunnableBranch():
            inner = [step.default, *(branch for _, branch in step.branches)]
        case RunnableConfigurableFields():
            inner = [step.default]
        case RunnableConfigurableAlternatives():
            inner = [step.default, *step.alternatives.values()]
    return [model for s in inner for model in reached(s)]
