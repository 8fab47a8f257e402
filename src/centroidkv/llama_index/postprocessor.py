"""A node postprocessor: routes the query and puts its cluster's pinned passages first."""

from typing import Literal

from llama_index.core.bridge.pydantic import ConfigDict, Field
from llama_index.core.postprocessor.types import BaseNodePostprocessor
from llama_index.core.schema import NodeWithScore, QueryBundle

from centroidkv.engine import Engine
from centroidkv.llama_index.nodes import as_node
from centroidkv.retrieval import as_passage

__all__ = ["CentroidKVPostprocessor"]


class CentroidKVPostprocessor(BaseNodePostprocessor):
    """Puts pinned passages in front of what was retrieved; nothing of that is lost.

    Pins get the highest score of the base, so that later postprocessors keep them. With
    `order="base_first"` the retrieved nodes stay in front, for those who cut the list
    afterwards: that gives up the reuse of the pins.
    """

    model_config = ConfigDict(extra="forbid", arbitrary_types_allowed=True)

    engine: Engine = Field(exclude=True, repr=False)
    order: Literal["pinned_first", "base_first"] = "pinned_first"

    @classmethod
    def class_name(cls) -> str:
        return "CentroidKVPostprocessor"

    def _postprocess_nodes(
        self, nodes: list[NodeWithScore], query_bundle: QueryBundle | None = None
    ) -> list[NodeWithScore]:
        if query_bundle is None:
            return nodes
        route = self.engine.route(query_bundle.query_str)
        found: dict[str, NodeWithScore] = {}
        for node in nodes:
            found.setdefault(as_passage(node).text, node)
        known = [as_passage(n) for n in found.values()]
        passages = self.engine.compose(route, known)
        pins = {p.text for p in self.engine.pinned(route, known)}
        best = max((n.score for n in nodes if n.score is not None), default=1.0)
        composed = [
            _scored(found.get(p.text) or as_node(p), best) if p.text in pins else found[p.text]
            for p in passages
        ]
        if self.order == "base_first" and not self.engine.is_warming:
            return [*found.values(), *(n for n in composed if as_passage(n).text not in found)]
        return composed


def _scored(node: NodeWithScore, best: float) -> NodeWithScore:
    """Give a pin the best score, so that no cutoff takes one: fewer pins are another prompt."""
    return NodeWithScore(node=node.node, score=best)
