"""A copy of a LangChain chain with model and retriever swapped for ours; the original stays.

Known shapes are rebuilt around what is swapped in them; prompts, parsers and functions are
shared with the original. What hides a model or a retriever is refused by name.
"""

from collections.abc import Iterable
from functools import singledispatchmethod
from typing import Any, TypeAlias, TypeVar

from langchain_core.language_models import BaseLanguageModel
from langchain_core.retrievers import BaseRetriever
from langchain_core.runnables import (
    RouterRunnable,
    Runnable,
    RunnableBinding,
    RunnableBranch,
    RunnableParallel,
    RunnableSequence,
    RunnableWithFallbacks,
)
from langchain_core.runnables.base import RunnableBindingBase, RunnableEach
from langchain_core.runnables.configurable import (
    RunnableConfigurableAlternatives,
    RunnableConfigurableFields,
)
from langchain_core.runnables.history import RunnableWithMessageHistory
from langchain_core.runnables.passthrough import RunnableAssign
from langchain_core.runnables.retry import RunnableRetry

from centroidkv.engine import Engine
from centroidkv.errors import ConfigError, UnsupportedChain
from centroidkv.langchain.opaque import Hidden, described, hidden, inside_history
from centroidkv.langchain.retriever import CentroidKVRetriever
from centroidkv.langchain.settings import ModelSettings
from centroidkv.langchain.swapping import (
    CARRIED,
    MODELS,
    RETRIEVER,
    bound_to,
    model_like,
    moved,
    reached,
    retriever_around,
)

Step: TypeAlias = Runnable[Any, Any]
Input = TypeVar("Input")
Output = TypeVar("Output")

# Steps whose parts are swapped one by one; any other is a leaf, shared with the original.
_KNOWN = (
    RouterRunnable,
    RunnableAssign,
    RunnableBinding,
    RunnableBranch,
    RunnableConfigurableAlternatives,
    RunnableEach,
    RunnableParallel,
    RunnableRetry,
    RunnableSequence,
    RunnableWithFallbacks,
)

__all__ = ["accelerate"]


def accelerate(chain: Runnable[Input, Output], engine: Engine) -> Runnable[Input, Output]:
    """Return a copy of a chain whose models and retriever are ours, on `engine`.

    Args:
        chain: An LCEL chain. It is not changed; prompts, parsers and functions are shared.
        engine: The engine that answers and routes.

    Raises:
        UnsupportedChain: There is no model, or a part that cannot be swapped; the message names
            it and says what to do by hand.
        ConfigError: `engine` is not an engine.
    """
    if not isinstance(engine, Engine):
        raise ConfigError(f"accelerate(chain, engine) needs an Engine, not {engine!r}")
    _refuse_what_is_no_chain(chain)
    swap = _Swap(engine, chain)
    copied: Runnable[Input, Output] = swap.copy(chain)
    for left in hidden(copied, transparent=_KNOWN):
        swap.require_ours(left)
    if not swap.num_models:
        raise UnsupportedChain(
            f"no model was found in {described(chain)}; seen: {', '.join(swap.leaves)}",
            instead=f"construct {MODELS} where the chain asks its model, and {RETRIEVER} around "
            "its retriever",
        )
    return copied


def _refuse_what_is_no_chain(thing: object) -> None:
    """Refuse graphs and legacy chains, which hold models where no step can be swapped."""
    for kind in type(thing).__mro__:
        package = kind.__module__.split(".")[0]
        if package == "langgraph":
            raise UnsupportedChain(
                f"{type(thing).__name__} is a graph, whose nodes cannot be taken apart",
                instead=f"accelerate each chain that its nodes run, or construct {MODELS} and "
                f"{RETRIEVER} in the nodes, and compile the graph anew",
            )
        if package in ("langchain", "langchain_classic") and kind.__name__ == "Chain":
            raise UnsupportedChain(
                f"{type(thing).__name__} is a legacy chain, which cannot be taken apart",
                instead="write it with create_retrieval_chain and create_stuff_documents_chain, "
                f"or construct it anew with {MODELS} and {RETRIEVER}",
            )
    if not isinstance(thing, Runnable):
        raise UnsupportedChain(
            f"{type(thing).__name__} is not a LangChain chain",
            instead=f"give the chain that asks the model, or construct {MODELS} by hand",
        )


class _Swap:
    """Copies the steps of one chain, each once, so that what is shared stays shared."""

    def __init__(self, engine: Engine, chain: Step) -> None:
        self._engine = engine
        # A retriever that was wrapped by hand is the one that gets the pins.
        before = hidden(chain)
        self._is_wrapped = any(isinstance(h.found, CentroidKVRetriever) for h in before)
        self._copies: dict[int, Step] = {}
        self._retrievers: list[BaseRetriever] = []  # of one request, up to here
        self.num_models = 0
        self.leaves: list[str] = []

    def copy(self, step: Step) -> Any:
        """Return the copy of a step, the same for the same step."""
        if id(step) not in self._copies:
            self._copies[id(step)] = self._copy(step)
        return self._copies[id(step)]

    def _copies_of_which_one_runs(self, steps: Iterable[Step]) -> list[Any]:
        before, all_seen = self._retrievers, list(self._retrievers)
        copies = []
        for step in steps:
            self._retrievers = list(before)
            copies.append(self.copy(step))
            all_seen += self._retrievers[len(before) :]
        self._retrievers = all_seen
        return copies

    def require_ours(self, left: Hidden) -> None:
        """Refuse what is still not ours in the copy.

        Raises:
            UnsupportedChain: It would be asked as before.
        """
        found = left.found
        if isinstance(found, CentroidKVRetriever):
            is_ours = found.engine is self._engine
        elif isinstance(found, BaseRetriever):
            is_ours = self._is_wrapped
        else:
            is_ours = isinstance(found, ModelSettings) and found.kv is self._engine
        if not is_ours:
            is_retriever = isinstance(found, BaseRetriever)
            step, ours = ("retriever", RETRIEVER) if is_retriever else ("model", MODELS)
            raise UnsupportedChain(
                f"{left.holder or 'the chain'} asks {described(found)}, which cannot be swapped "
                "there",
                instead=f"write `| {step} |` as a step of the chain, or construct {ours} and ask "
                "that",
            )

    @singledispatchmethod
    def _copy(self, step: Step) -> Step:
        _refuse_what_is_no_chain(step)
        self.leaves.append(described(step))
        return step

    # models and retrievers

    @_copy.register(BaseLanguageModel)
    def _(self, step: BaseLanguageModel[Any]) -> Step:
        self.num_models += 1
        return model_like(step, self._engine)

    @_copy.register(ModelSettings)
    def _(self, step: ModelSettings) -> Any:
        self.num_models += 1
        return moved(step, self._engine)

    @_copy.register(BaseRetriever)
    def _(self, step: BaseRetriever) -> Step:
        self.leaves.append(described(step))
        if self._is_wrapped and not isinstance(step, CentroidKVRetriever):
            return step
        if any(isinstance(h.found, CentroidKVRetriever) for h in hidden(vars(step))):
            raise UnsupportedChain(
                f"{described(step)} holds a CentroidKVRetriever, whose pins it may move or drop",
                instead=f"give it the base retriever, and let {RETRIEVER} stand around the whole",
            )
        others = [r for r in self._retrievers if r is not step]
        if others:
            raise UnsupportedChain(
                f"{described(others[0])} and {described(step)} find passages for one request, and "
                "only one of them can get the pinned ones",
                instead=f"wrap that one by hand in {RETRIEVER}; the others are then left alone",
            )
        self._retrievers.append(step)
        return retriever_around(step, self._engine)

    # one step after another, or beside another

    @_copy.register(RunnableSequence)
    def _(self, step: RunnableSequence[Any, Any]) -> Step:
        first, *middle, last = [self.copy(s) for s in step.steps]
        return step.model_copy(update={"first": first, "middle": middle, "last": last})

    @_copy.register(RunnableParallel)
    def _(self, step: RunnableParallel[Any]) -> Step:
        steps = {key: self.copy(s) for key, s in step.steps__.items()}
        return step.model_copy(update={"steps__": steps})

    @_copy.register(RunnableAssign)
    def _(self, step: RunnableAssign) -> Step:
        return step.model_copy(update={"mapper": self.copy(step.mapper)})

    # one step of several

    @_copy.register(RunnableBranch)
    def _(self, step: RunnableBranch[Any, Any]) -> Step:
        conditions = [self.copy(condition) for condition, _ in step.branches]
        *branches, default = self._copies_of_which_one_runs(
            [*(branch for _, branch in step.branches), step.default]
        )
        pairs = list(zip(conditions, branches, strict=True))
        return step.model_copy(update={"branches": pairs, "default": default})

    @_copy.register(RouterRunnable)
    def _(self, step: RouterRunnable[Any]) -> Step:
        copies = self._copies_of_which_one_runs(step.runnables.values())
        return step.model_copy(update={"runnables": dict(zip(step.runnables, copies, strict=True))})

    @_copy.register(RunnableWithFallbacks)
    def _(self, step: RunnableWithFallbacks[Any, Any]) -> Step:
        first, *others = self._copies_of_which_one_runs([step.runnable, *step.fallbacks])
        return step.model_copy(update={"runnable": first, "fallbacks": others})

    @_copy.register(RunnableConfigurableAlternatives)
    def _(self, step: RunnableConfigurableAlternatives[Any, Any]) -> Step:
        given = step.alternatives
        made = [key for key, alternative in given.items() if not isinstance(alternative, Runnable)]
        if made:
            raise UnsupportedChain(
                f"the alternative {made[0]!r} is a function that makes a step",
                instead="give the step itself",
            )
        steps = [s for s in (step.default, *given.values()) if isinstance(s, Runnable)]
        default, *others = self._copies_of_which_one_runs(steps)
        alternatives = dict(zip(given, others, strict=True))
        return step.model_copy(update={"default": default, "alternatives": alternatives})

    # a step with something around it

    @_copy.register(RunnableEach)
    def _(self, step: RunnableEach[Any, Any]) -> Step:
        return step.model_copy(update={"bound": self.copy(step.bound)})

    @_copy.register(RunnableBinding)
    @_copy.register(RunnableRetry)
    def _(self, step: RunnableBindingBase[Any, Any]) -> Step:
        bound, arguments = self.copy(step.bound), dict(step.kwargs)
        for model in reached(bound) if arguments else ():
            arguments = bound_to(model, arguments)
        own = {"bound": bound, "kwargs": arguments, "config": {**step.config}}
        return step.model_copy(update=own)

    @_copy.register(RunnableConfigurableFields)
    def _(self, step: RunnableConfigurableFields[Any, Any]) -> Step:
        if not isinstance(step.default, BaseLanguageModel):
            self.leaves.append(described(step.default))
            return step
        unknown = sorted(set(step.fields) - set(CARRIED))
        if unknown and not isinstance(step.default, ModelSettings):
            raise UnsupportedChain(
                f"{', '.join(unknown)} of {described(step.default)} can be configured, which our "
                "models do not have",
                instead=f"make one of {', '.join(CARRIED[:5])} configurable",
            )
        return step.model_copy(update={"default": self.copy(step.default)})

    @_copy.register(RunnableWithMessageHistory)
    def _(self, step: RunnableWithMessageHistory) -> Step:
        return RunnableWithMessageHistory(
            self.copy(inside_history(step)),
            step.get_session_history,
            input_messages_key=step.input_messages_key,
            output_messages_key=step.output_messages_key,
            history_messages_key=step.history_messages_key,
            history_factory_config=step.history_factory_config,
            kwargs=dict(step.kwargs),
            config={**step.config},
            config_factories=step.config_factories,
            custom_input_type=step.custom_input_type,
            custom_output_type=step.custom_output_type,
            name=step.name,
        )
