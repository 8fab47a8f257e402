"""Passages back to LlamaIndex nodes."""

from llama_index.core.schema import NodeWithScore, TextNode

from centroidkv.retrieval import NODE_KEY
from centroidkv.types import Passage

__all__ = ["as_node"]


def as_node(passage: Passage) -> NodeWithScore:
    """Make the node a passage was built from, which the model reads the same as that one."""
    metadata = dict(passage.metadata)
    rendering = metadata.pop(NODE_KEY, {})
    node = TextNode(text=passage.text, id_=passage.id, metadata=metadata, **rendering)
    return NodeWithScore(node=node, score=None)
