"""A copy of a LlamaIndex query or chat engine with our model and pins; the original stays.

LlamaIndex keeps an engine's parts in private attributes, without a public way to read them or to
copy the engine. So a copy is made of the attributes; the classes that are known are listed, and
any other is refused by name.
"""

import copy
from functools import singledispatchmethod
from types import MethodType
from typing import Any, TypeVar

from llama_index.core.base.base_query_engine import BaseQueryEngine
from llama_index.core.bridge.pydantic import ValidationError
from llama_index.core.callbacks import CallbackManager
from llama_index.core.chat_engine import (
    CondensePlusContextChatEngine,
    CondenseQuestionChatEngine,
    ContextChatEngine,
    SimpleChatEngine,
)
from llama_index.core.chat_engine.types import BaseChatEngine
from llama_index.core.indices.base import BaseIndex
from llama_index.core.indices.prompt_helper import ChatPromptHelper, PromptHelper
from llama_index.core.llms import LLM
from llama_index.core.llms.structured_llm import StructuredLLM
from llama_index.core.postprocessor import (
    MetadataReplacementPostProcessor,
    SimilarityPostprocessor,
)
from llama_index.core.postprocessor.types import BaseNodePostprocessor
from llama_index.core.query_engine import RetrieverQueryEngine
from llama_index.core.response_synthesizers import (
    Accumulate,
    BaseSynthesizer,
    CompactAndRefine,
    Generation,
    Refine,
    SimpleSummarize,
    TreeSummarize,
)
from llama_index.core.response_synthesizers.compact_and_accumulate import CompactAndAccumulate
from llama_index.core.response_synthesizers.context_only import ContextOnly
from llama_index.core.response_synthesizers.no_text import NoText

from centroidkv.engine import Engine
from centroidkv.errors import ConfigError, UnsupportedChain
from centroidkv.llama_index.llm import CentroidKVLLM
from centroidkv.llama_index.memories import copied_memory
from centroidkv.llama_index.postprocessor import CentroidKVPostprocessor

EngineT = TypeVar("EngineT", bound=BaseQueryEngine | BaseChatEngine)

Helper = TypeVar("Helper", PromptHelper, ChatPromptHelper)

_ENGINES = {
    CondensePlusContextChatEngine,
    CondenseQuestionChatEngine,
    ContextChatEngine,
    RetrieverQueryEngine,
    SimpleChatEngine,
}
_SYNTHESIZERS = {
    Accumulate,
    CompactAndAccumulate,
    CompactAndRefine,
    Generation,
    Refine,
    SimpleSummarize,
    TreeSummarize,
}
# Behind the windows, these keep the pins where they are.
_KEEPING = (MetadataReplacementPostProcessor, SimilarityPostprocessor)

# Fields of a model that mean the same on ours; how it renders prompts is the old one's own.
_CARRIED = (
    "max_tokens",
    "temperature",
    "top_p",
    "seed",
    "stop",
    "callback_manager",
    "output_parser",
    "system_prompt",
)
_BY_HAND = (
    "construct it by hand with llm=CentroidKVLLM(engine=engine) and "
    "CentroidKVPostprocessor(engine=engine) as the last of its node postprocessors"
)

__all__ = ["accelerate"]


def accelerate(chain: EngineT, engine: Engine) -> EngineT:
    """Return a copy of a query or chat engine with our model and pinned passages, on `engine`.

    A chat engine's copy begins with a copy of the conversation.

    Args:
        chain: A query engine or a chat engine. It is not changed.
        engine: The engine that answers and routes.

    Raises:
        UnsupportedChain: It asks no model, or has a part that cannot be swapped; the message
            names it and says what to do by hand.
        ConfigError: `engine` is not an engine.
    """
    if not isinstance(engine, Engine):
        raise ConfigError(f"accelerate(chain, engine) needs an Engine, not {engine!r}")
    copied: EngineT = _Swap(engine).copied(chain)
    return copied


class _Swap:
    """Copies the parts of one engine, its model once."""

    def __init__(self, engine: Engine) -> None:
        self._engine = engine
        self._models: dict[int, CentroidKVLLM] = {}

    def copied(self, original: Any) -> Any:
        """Return a copy of an engine of LlamaIndex with its parts swapped."""
        if type(original) not in _ENGINES:
            raise _unknown(original)
        copied = copy.copy(original)
        for name, part in vars(original).items():
            setattr(copied, name, self._part(part))
        if hasattr(copied, "_memory"):
            was, now = (e._llm.metadata.context_window for e in (original, copied))
            copied._memory = copied_memory(original._memory, was=was, now=now)
        if hasattr(copied, "_node_postprocessors"):
            given = original._node_postprocessors
            copied._node_postprocessors = self._with_pins(given, original.callback_manager)
        return copied

    @singledispatchmethod
    def _part(self, part: Any) -> Any:
        return part.copy() if isinstance(part, list | dict) else part

    @_part.register(BaseQueryEngine)
    def _(self, part: BaseQueryEngine) -> Any:
        return self.copied(part)

    @_part.register(LLM)
    def _(self, part: LLM) -> CentroidKVLLM:
        if id(part) not in self._models:
            self._models[id(part)] = self._model_like(part)
        return self._models[id(part)]

    @_part.register(BaseSynthesizer)
    def _(self, part: BaseSynthesizer) -> Any:
        if type(part) not in _SYNTHESIZERS:
            raise _unknown(part)
        old = part._llm
        copied: Any = copy.copy(part)
        copied._llm = new = self._part(old)
        copied._prompt_helper = _fitted(part._prompt_helper, old, new)
        copied._chat_prompt_helper = _fitted(part._chat_prompt_helper, old, new)
        if isinstance(part, Refine):
            copied._program_factory = _rebound(part, copied)
        return copied

    def _model_like(self, old: LLM) -> CentroidKVLLM:
        if isinstance(old, CentroidKVLLM):
            if old.kv is self._engine:
                return old
            moved = {"engine": self._engine, "model": None, "store": None}
            return old.model_copy(update=moved)
        if isinstance(old, StructuredLLM):
            raise UnsupportedChain(
                f"StructuredLLM around {type(old.llm).__name__} makes objects of its answers",
                instead="give the query engine the model itself, and output_cls=... to its "
                "response synthesizer",
            )
        settings: dict[str, Any] = {name: getattr(old, name, None) for name in _CARRIED}
        if not _is_set(settings["max_tokens"]):
            settings["max_tokens"] = getattr(old, "max_new_tokens", None)  # Hugging Face's name
        if isinstance(settings["stop"], str):
            settings["stop"] = [settings["stop"]]
        try:
            return CentroidKVLLM(
                engine=self._engine, **{k: v for k, v in settings.items() if _is_set(v)}
            )
        except ValidationError as error:
            refused = "; ".join(": ".join([*map(str, e["loc"]), e["msg"]]) for e in error.errors())
            raise UnsupportedChain(
                f"{type(old).__name__} has settings that CentroidKVLLM does not take ({refused})",
                instead=_BY_HAND,
            ) from error

    def _with_pins(
        self, given: list[BaseNodePostprocessor], callback_manager: CallbackManager
    ) -> list[BaseNodePostprocessor]:
        """Return postprocessors with ours behind all that choose and order what was retrieved."""
        if any(isinstance(p, CentroidKVPostprocessor) for p in given):
            return [self._moved(p) for p in given]
        windows = (i for i, p in enumerate(given) if type(p) is MetadataReplacementPostProcessor)
        place = next(windows, len(given))
        moving = [type(p).__name__ for p in given[place:] if not isinstance(p, _KEEPING)]
        if moving:
            raise UnsupportedChain(
                f"{moving[0]} runs behind a MetadataReplacementPostProcessor and may move or drop "
                "the pinned passages",
                instead="put it before the MetadataReplacementPostProcessor",
            )
        ours = CentroidKVPostprocessor(engine=self._engine, callback_manager=callback_manager)
        return [*given[:place], ours, *given[place:]]

    def _moved(self, postprocessor: BaseNodePostprocessor) -> BaseNodePostprocessor:
        if not isinstance(postprocessor, CentroidKVPostprocessor):
            return postprocessor
        if postprocessor.engine is self._engine:
            return postprocessor
        return postprocessor.model_copy(update={"engine": self._engine})


def _is_set(value: object) -> bool:
    """Whether a setting says something; llama.cpp and Ollama write -1 for "no limit", "any"."""
    if isinstance(value, int | float):
        return value >= 0
    return value is not None and value != [] and value != ""


def _fitted(helper: Helper, old: LLM, new: LLM) -> Helper:
    """Return a prompt helper for our model: what it has from the old one is replaced.

    What the user chose is kept, as far as our model's context goes.
    """
    was, now = (type(helper).from_llm_metadata(llm.metadata) for llm in (old, new))
    window = min(helper.context_window, now.context_window)
    if helper.context_window == was.context_window:
        window = now.context_window
    output = now.num_output if helper.num_output == was.num_output else helper.num_output
    return helper.model_copy(update={"context_window": window, "num_output": output})


def _rebound(original: Refine, copied: Refine) -> MethodType:
    """Return the factory of answering programs, bound to the copy and so to its model."""
    factory = original._program_factory
    if isinstance(factory, MethodType) and factory.__self__ is original:
        return MethodType(factory.__func__, copied)
    raise UnsupportedChain(
        f"the program_factory of {type(original).__name__} may hold a model of its own",
        instead="leave it out, or construct the response synthesizer by hand with "
        "llm=CentroidKVLLM(engine=engine) and a factory for that",
    )


def _unknown(thing: object) -> UnsupportedChain:
    name = type(thing).__name__
    if isinstance(thing, NoText | ContextOnly):
        return UnsupportedChain(
            f"the response synthesizer {name} asks no model, so there is nothing to reuse",
            instead="accelerate the engine that asks the model, or add "
            "CentroidKVPostprocessor(engine=engine) to this one by hand",
        )
    if isinstance(thing, BaseQueryEngine) and _has_engine_inside(thing):
        return UnsupportedChain(
            f"{name} cannot be taken apart",
            instead=f"accelerate the query engine inside it, and construct the {name} around the "
            "copy",
        )
    if isinstance(thing, BaseIndex):
        return UnsupportedChain(
            f"{name} is an index", instead="accelerate what its as_query_engine(llm=...) returns"
        )
    if isinstance(thing, BaseQueryEngine | BaseChatEngine | BaseSynthesizer):
        return UnsupportedChain(f"{name} cannot be taken apart", instead=_BY_HAND)
    return UnsupportedChain(
        f"{name} is no query engine and no chat engine of LlamaIndex",
        instead="accelerate the query engine that uses it or that it uses, or construct it by "
        "hand with llm=CentroidKVLLM(engine=engine)",
    )


def _has_engine_inside(engine: BaseQueryEngine) -> bool:
    values = [
        part
        for value in vars(engine).values()
        for part in (value.values() if isinstance(value, dict) else [value])
    ]
    several = [part for value in values if isinstance(value, list) for part in value]
    return any(isinstance(part, BaseQueryEngine) for part in [*values, *several])
