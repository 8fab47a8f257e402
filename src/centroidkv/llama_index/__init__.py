"""LlamaIndex adapters: a language model, and a postprocessor that pins passages.

Imports llama-index-core, which the extra `centroidkv[llama-index]` brings.
"""

from centroidkv.errors import MissingExtra

try:
    import llama_index.core  # noqa: F401
except ImportError as error:
    raise MissingExtra(
        "llama-index-core", command="pip install 'centroidkv[llama-index]'"
    ) from error

from centroidkv.llama_index.acceleration import accelerate
from centroidkv.llama_index.llm import CentroidKVLLM
from centroidkv.llama_index.postprocessor import CentroidKVPostprocessor

__all__ = ["CentroidKVLLM", "CentroidKVPostprocessor", "accelerate"]
