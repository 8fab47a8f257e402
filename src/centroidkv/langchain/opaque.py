"""What functions and unknown steps of a chain hold: the models and retrievers that they ask.

Reads code and attributes without running anything. It proposes where a model may hide; an
object that is computed when the chain runs cannot be seen.
"""

import inspect
import sysconfig
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from types import CodeType, FunctionType, MethodType, ModuleType
from typing import Any, TypeAlias

from langchain_core.language_models import BaseLanguageModel
from langchain_core.retrievers import BaseRetriever
from langchain_core.runnables import (
    Runnable,
    RunnableBinding,
    RunnableLambda,
    RunnableSequence,
)
from langchain_core.runnables.history import RunnableWithMessageHistory

from centroidkv.errors import UnsupportedChain

# A container of more values than this holds data, not steps.
_MANY = 1000

_INSTALLED = tuple(sysconfig.get_paths()[name] for name in ("stdlib", "purelib", "platlib"))

# What decorates a run, and is no part of its data.
_ASIDE = {"callbacks", "config", "config_factories"}

_CONTAINERS = (Mapping, list, tuple, set, frozenset)

Asked: TypeAlias = BaseLanguageModel[Any] | BaseRetriever

__all__ = ["Hidden", "described", "hidden", "inside_history"]


@dataclass(frozen=True, slots=True)
class Hidden:
    """A model or retriever, and the first opaque step on the way to it, if there is one."""

    found: Asked
    holder: str | None


def hidden(root: object, *, transparent: tuple[type, ...] = ()) -> Iterator[Hidden]:
    """Yield every model and retriever that can be reached from `root`, each once.

    Retrievers and models are not looked into. Steps of the types in `transparent` are not named
    as holders.
    """
    seen: dict[tuple[int, int], object] = {}  # holds what it saw, so that no id is given out again
    todo: list[tuple[object, str | None]] = [(root, None)]
    while todo:
        item, holder = todo.pop()
        key = _key(item)
        if key in seen:
            continue
        seen[key] = item
        if isinstance(item, BaseLanguageModel | BaseRetriever):
            yield Hidden(item, holder)
            continue
        if holder is None and isinstance(item, Runnable) and not isinstance(item, transparent):
            holder = described(item)
        todo += [(part, holder) for part in _parts(item)]


def described(item: object) -> str:
    """Name a step for a message: a function with its place, anything else by type and name."""
    if isinstance(item, RunnableLambda):
        function = getattr(item, "func", None) or getattr(item, "afunc", None)
        code = getattr(function, "__code__", None)
        place = f" ({Path(code.co_filename).name}:{code.co_firstlineno})" if code else ""
        return f"{item!r}{place}"
    kind = type(item).__name__
    name = getattr(item, "name", None) if isinstance(item, Runnable) else None
    return f"{kind} {name!r}" if name and name != kind else kind


def _key(item: object) -> tuple[int, int]:
    """Identify an object; a bound method is made anew each time it is looked up."""
    if isinstance(item, MethodType):
        return id(item.__func__), id(item.__self__)
    return id(item), 0


def _parts(item: object) -> Iterable[object]:
    if isinstance(item, _CONTAINERS):
        values = item.values() if isinstance(item, Mapping) else item
        return filter(_is_open, values) if len(item) <= _MANY else ()
    if isinstance(item, partial):
        return filter(_is_open, (item.func, *item.args, *item.keywords.values()))
    if isinstance(item, MethodType):
        return filter(_is_open, _named_in(item.__func__, item.__self__))
    if isinstance(item, FunctionType):
        return filter(_is_open, _named_in(item))
    attributes = {**getattr(item, "__dict__", {}), **(_private(item) or {})}
    return (v for k, v in attributes.items() if k not in _ASIDE and _is_open(v))


def _is_open(value: object) -> bool:
    """Whether something may be found in a value."""
    if isinstance(value, type):
        return False
    return isinstance(value, (*_CONTAINERS, Runnable)) or callable(value)


def _private(item: object) -> Mapping[str, object] | None:
    """Return the private attributes of a pydantic object, which its `__dict__` leaves out."""
    return getattr(item, "__pydantic_private__", None) if isinstance(item, Runnable) else None


def _named_in(function: Callable[..., Any], owner: object = None) -> list[object]:
    """Return what a function's code names: in its closure, its globals, on `owner` and on these."""
    if not isinstance(function, FunctionType):
        return []
    names = _names(function.__code__)
    values = [*(function.__defaults__ or ()), *(function.__kwdefaults__ or {}).values()]
    for cell in function.__closure__ or ():
        try:
            values.append(cell.cell_contents)
        except ValueError:  # not yet bound
            continue
    there = [function.__globals__[name] for name in names if name in function.__globals__]
    if owner is not None:
        values += _attributes(owner, names)
    for value in [*values, *there]:
        if not isinstance(value, Runnable | FunctionType | MethodType | type):
            there += _attributes(value, names)
    return values + [value for value in there if _is_followed(value, function)]


def _names(code: CodeType) -> set[str]:
    """Return the names that a function's code looks up, functions inside it included."""
    names = set(code.co_names)
    for constant in code.co_consts:
        if isinstance(constant, CodeType):
            names |= _names(constant)
    return names


def _attributes(value: object, names: set[str]) -> list[object]:
    """Return attributes of a value, without running properties; methods come bound to it."""
    found: list[object] = []
    for name in names:
        attribute = inspect.getattr_static(value, name, None)
        if isinstance(attribute, FunctionType) and not isinstance(value, ModuleType):
            attribute = MethodType(attribute, value)
        found.append(attribute)
    return found


def _is_followed(value: object, user: FunctionType) -> bool:
    """Whether what a function uses is looked into: not the functions of installed packages.

    Those of the package that the function itself belongs to are, unless that is LangChain.
    """
    function = value.__func__ if isinstance(value, MethodType) else value
    if not isinstance(function, FunctionType):
        return True
    package = function.__module__.split(".")[0]
    if package == user.__module__.split(".")[0] and not package.startswith("lang"):
        return True
    return not function.__code__.co_filename.startswith(_INSTALLED)


def inside_history(history: RunnableWithMessageHistory) -> Runnable[Any, Any]:
    """Return what a message history was put around.

    LangChain keeps it nowhere but in the closure of the last step, behind a listener of its own.

    Raises:
        UnsupportedChain: It is not there.
    """
    calls = (dep for step in _lambdas(history.bound) for dep in step.deps)
    found = [dep for dep in calls if isinstance(dep, RunnableBinding)]
    if type(history) is not RunnableWithMessageHistory or not found:
        raise UnsupportedChain(
            f"what a {type(history).__name__} was put around cannot be read from it",
            instead="accelerate the chain inside, and put the history around the copy",
        )
    binding = found[0]
    bare = binding.model_copy(update={"config_factories": binding.config_factories[1:]})
    types = bare.custom_input_type, bare.custom_output_type
    is_empty = not any((bare.kwargs, bare.config, bare.config_factories, *types))
    return bare.bound if is_empty else bare


def _lambdas(step: Any) -> list[RunnableLambda[Any, Any]]:
    """Return the function at the end of a sequence, under what is bound to it."""
    while isinstance(step, RunnableBinding | RunnableSequence):
        step = step.bound if isinstance(step, RunnableBinding) else step.last
    return [step] if isinstance(step, RunnableLambda) else []
