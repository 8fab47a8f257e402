"""`accelerate`: the front door to the edges, which knows whose chain it was given.

Like the command, it stands above the edges. It imports that of the chain's own framework, and
only when it is called.
"""

from typing import TYPE_CHECKING, Any, TypeVar, overload

from centroidkv.engine import Engine
from centroidkv.errors import UnsupportedChain

if TYPE_CHECKING:
    from langchain_core.runnables import Runnable
    from llama_index.core.base.base_query_engine import BaseQueryEngine
    from llama_index.core.chat_engine.types import BaseChatEngine

Input = TypeVar("Input")
Output = TypeVar("Output")
LlamaIndexEngine = TypeVar("LlamaIndexEngine", bound="BaseQueryEngine | BaseChatEngine")

_LANGCHAIN = {"langchain", "langchain_classic", "langchain_core", "langgraph"}
_LLAMA_INDEX = {"llama_index", "workflows"}

__all__ = ["accelerate"]


@overload
def accelerate(chain: "Runnable[Input, Output]", engine: Engine) -> "Runnable[Input, Output]": ...
@overload
def accelerate(chain: LlamaIndexEngine, engine: Engine) -> LlamaIndexEngine: ...
def accelerate(chain: Any, engine: Engine) -> Any:
    """Return a copy of a chain or query engine with model and retriever swapped for ours.

    Args:
        chain: A LangChain chain, or a LlamaIndex query engine or chat engine. It is not changed.
        engine: The engine that answers and routes.

    Raises:
        UnsupportedChain: It is none of these, or has a part that cannot be swapped; the message
            says what to do by hand.
        ConfigError: `engine` is not an engine.
    """
    packages = {kind.__module__.split(".")[0] for kind in type(chain).__mro__}
    if packages & _LANGCHAIN:
        from centroidkv.langchain import acceleration as langchain

        return langchain.accelerate(chain, engine)
    if packages & _LLAMA_INDEX:
        from centroidkv.llama_index import acceleration as llama_index

        return llama_index.accelerate(chain, engine)
    raise UnsupportedChain(
        f"{type(chain).__name__} is no chain of LangChain and no engine of LlamaIndex",
        instead="in code of your own, put what engine.route and engine.compose return into the "
        "prompt, and answer it with engine.generate",
    )
