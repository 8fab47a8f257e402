"""A copy of a conversation's memory that shares nothing which grows.

Only memory inside the process is copied. What lies in a database is not: a copy would write there.
"""

from typing import Any

from llama_index.core.memory import (
    BaseMemory,
    ChatMemoryBuffer,
    ChatSummaryMemoryBuffer,
    Memory,
    StaticMemoryBlock,
)
from llama_index.core.storage.chat_store import SimpleChatStore
from llama_index.core.storage.chat_store.sql import SQLAlchemyChatStore
from sqlalchemy import make_url

from centroidkv.errors import UnsupportedChain

# What LlamaIndex's chat engines leave free of a model's context when they make a memory.
_RESERVE = 256

_IN_MEMORY = (None, "", ":memory:")

__all__ = ["copied_memory"]


def copied_memory(memory: BaseMemory, *, was: int, now: int) -> BaseMemory:
    """Return a copy that begins with the same messages.

    Args:
        memory: It is not changed.
        was: Tokens of the old model's context; a limit taken from there is taken anew.
        now: Tokens of our model's context, which no limit may exceed.

    Raises:
        UnsupportedChain: It is of an unknown kind, or keeps its messages in a database.
    """
    ours = max(now - _RESERVE, 1)
    if isinstance(memory, ChatMemoryBuffer | ChatSummaryMemoryBuffer):
        own: dict[str, Any] = {"chat_store": _copied_store(memory)}
    elif isinstance(memory, Memory):
        own = {"sql_store": _copied_database(memory), "memory_blocks": list(memory.memory_blocks)}
        own["token_flush_size"] = min(memory.token_flush_size, ours)
    else:
        raise _uncopied(type(memory).__name__)
    is_derived = memory.token_limit == was - _RESERVE
    own["token_limit"] = ours if is_derived else min(memory.token_limit, ours)
    return memory.model_copy(update=own)


def _copied_store(memory: ChatMemoryBuffer | ChatSummaryMemoryBuffer) -> SimpleChatStore:
    store = memory.chat_store
    if type(store) is not SimpleChatStore:
        raise _uncopied(f"{type(memory).__name__} with a {type(store).__name__}")
    messages = {key: list(kept) for key, kept in store.store.items()}
    return store.model_copy(update={"store": messages})


def _copied_database(memory: Memory) -> SQLAlchemyChatStore:
    store = memory.sql_store
    changing = [type(b).__name__ for b in memory.memory_blocks if type(b) is not StaticMemoryBlock]
    if changing:
        raise _uncopied(f"a memory with a {changing[0]}")
    if type(store) is not SQLAlchemyChatStore:
        raise _uncopied(f"a memory with a {type(store).__name__}")
    # A database may be given as an engine alone, which the store hands out nowhere.
    engine = store._async_engine
    url = make_url(store.async_database_uri) if engine is None else engine.url
    if url.database not in _IN_MEMORY:
        raise _uncopied(f"a memory in {url.render_as_string(hide_password=True)}")
    dumped = store.model_dump()
    own = [row for row in dumped.pop("db_data") if row["key"] == memory.session_id]
    return SQLAlchemyChatStore(**dumped, db_data=own)


def _uncopied(what: str) -> UnsupportedChain:
    return UnsupportedChain(
        f"{what} cannot be copied, and the copy of a chat engine may not write into the original",
        instead="construct the chat engine by hand with llm=CentroidKVLLM(engine=engine), "
        "memory=... and node_postprocessors=[CentroidKVPostprocessor(engine=engine)]",
    )
