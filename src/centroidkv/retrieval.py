"""One face for what users retrieve with: LangChain and LlamaIndex retrievers, or a function.

Recognises them by their methods, so that neither framework is imported here.
"""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace
from typing import Any, TypeAlias

from centroidkv.errors import ConfigError
from centroidkv.types import Passage, valid_text

# From (question, how many) to passages, best first.
DeepRetrieve: TypeAlias = Callable[[str, int], Sequence[Passage]]

# What of a LlamaIndex node decides how its text is shown to a model, kept in the metadata.
NODE_KEY = "llama_index_node"
_RENDERING = {
    "excluded_embed_metadata_keys",
    "excluded_llm_metadata_keys",
    "metadata_separator",
    "metadata_template",
    "text_template",
}

__all__ = ["NODE_KEY", "DeepRetrieve", "as_invoke", "as_passage", "deep_retrieve"]


def as_passage(document: Any) -> Passage:
    """Turn a LangChain document, a LlamaIndex node, a passage or a string into a passage.

    Raises:
        ConfigError: It is none of these.
    """
    if isinstance(document, Passage):
        text = valid_text(document.text)
        return document if text == document.text else replace(document, text=text)
    if isinstance(document, str):
        return Passage.of(document)
    if hasattr(document, "page_content"):
        return Passage.of(document.page_content, document.metadata)
    node = getattr(document, "node", document)
    if hasattr(node, "get_content"):
        return Passage.of(node.get_content(), {**node.metadata, **_rendering(node)})
    raise ConfigError(
        f"the retriever returned a {type(document).__name__}; expected documents with "
        "page_content, nodes with get_content(), or strings"
    )


def _rendering(node: Any) -> dict[str, Any]:
    """Return how a LlamaIndex node wants to be read, where that is not the default."""
    fields = getattr(type(node), "model_fields", {})
    own = {
        name: getattr(node, name)
        for name in _RENDERING & set(fields)
        if getattr(node, name) != fields[name].get_default(call_default_factory=True)
    }
    return {NODE_KEY: own} if own else {}


def deep_retrieve(retriever: Any) -> DeepRetrieve:
    """Wrap a retriever so that it can be asked for more passages than it returns by default.

    Raises:
        ConfigError: It has neither `invoke` nor `retrieve` and cannot be called.
    """
    if hasattr(retriever, "invoke"):
        if isinstance(getattr(retriever, "search_kwargs", None), dict):
            return lambda question, k: _passages(retriever.invoke(question, k=k))
        return lambda question, _: _passages(retriever.invoke(question))
    if hasattr(retriever, "query") and hasattr(retriever, "retriever"):
        retriever = retriever.retriever  # a query engine; its postprocessors are left out
    if hasattr(retriever, "retrieve"):
        return lambda question, _: _passages(retriever.retrieve(question))
    if callable(retriever):
        return lambda question, _: _passages(retriever(question))
    raise ConfigError(
        f"a {type(retriever).__name__} is not a retriever: it needs invoke(question) or "
        "retrieve(question), or must be a function from a question to passages"
    )


def as_invoke(chain: Any, names: Sequence[str]) -> Callable[[str], Any]:
    """Return the function from a question to a run: `chain` itself, or one of its methods.

    Raises:
        ConfigError: It can neither be called nor has one of the methods.
    """
    if callable(chain):
        called: Callable[[str], Any] = chain
        return called
    for name in names:
        method = getattr(chain, name, None)
        if callable(method):
            run: Callable[[str], Any] = method
            return run
    raise ConfigError(
        f"a {type(chain).__name__} cannot be warmed with: give a function from a question to a run "
        f"of the whole chain, or something that has {', '.join(names)}"
    )


def _passages(documents: Iterable[Any]) -> list[Passage]:
    return [as_passage(d) for d in documents]
