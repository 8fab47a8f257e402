"""LangChain adapters: replace a model's constructor and wrap the retriever.

Imports langchain-core, which the extra `centroidkv[langchain]` brings.
"""

from centroidkv.errors import MissingExtra

try:
    import langchain_core  # noqa: F401
except ImportError as error:
    raise MissingExtra("langchain-core", command="pip install 'centroidkv[langchain]'") from error

from centroidkv.langchain.acceleration import accelerate
from centroidkv.langchain.answer_cache import CentroidKVAnswerCache
from centroidkv.langchain.chat import ChatCentroidKV
from centroidkv.langchain.llm import CentroidKVLLM
from centroidkv.langchain.retriever import CentroidKVRetriever

__all__ = [
    "CentroidKVAnswerCache",
    "CentroidKVLLM",
    "CentroidKVRetriever",
    "ChatCentroidKV",
    "accelerate",
]
