"""A node postprocessor: routes the query and puts its cluster's pinned passages first."""

from typing import Literal

from llama_index.core.bridge.pydantic import ConfigDict, Field
from llama_index.core.postprocessor.types import BaseNodePostprocessor
from llama_index.core.schema import BaseNode, NodeWithScore, QueryBundle

from centroidkv.engine import Engine
from centroidkv.llama_index.nodes import as_node
from centroidkv.retrieval import as_passage
from centroidkv.types import Passage

__all__ = ["CentroidKVPostprocessor"]


class CentroidKVPostprocessor(BaseNodePostprocessor):
    """Puts pinned passages in front of what was retrieved.

    Of nodes of equal text the first is kept; nothing else is lost. Metadata of pins is plain JSON.
    Pins get the highest score of the base, so that later postprocessors keep them. With
    `order="base_first"` the retrieved nodes stay in front, for those who cut the list
    afterwards: that gives up the reuse of the pins. With a `domain`, queries keep to the clusters
    that serve it.
    """

    model_config = ConfigDict(extra="forbid", arbitrary_types_allowed=True)

    engine: Engine = Field(exclude=True, repr=False)
    order: Literal["pinned_first", "base_first"] = "pinned_first"
    domain: str | None = None

    @classmethod
    def class_name(cls) -> str:
        return "CentroidKVPostprocessor"

    def _postprocess_nodes(
        self, nodes: list[NodeWithScore], query_bundle: QueryBundle | None = None
    ) -> list[NodeWithScore]:
        if query_bundle is None:
            return nodes
        route = self.engine.route(query_bundle.query_str, domain=self.domain)
        found: dict[str, NodeWithScore] = {}
        known: dict[str, Passage] = {}
        for node in nodes:
            passage = as_passage(node)
            if found.setdefault(passage.text, node) is node:
                known[passage.text] = passage
        passages = self.engine.compose(route, list(known.values()))
        pins = {p.text for p in self.engine.pinned(route, list(known.values()))}
        best = max((n.score for n in nodes if n.score is not None), default=1.0)
        composed = [
            _pin(p, known.get(p.text), found.get(p.text), best) if p.text in pins else found[p.text]
            for p in passages
        ]
        if self.order == "base_first" and not self.engine.is_warming:
            return [*found.values(), *(n for n in composed if as_passage(n).text not in found)]
        return composed


def _pin(
    passage: Passage, own: Passage | None, found: NodeWithScore | None, score: float
) -> NodeWithScore:
    """Return a pin's node with the best score, so that no cutoff takes one.

    One that was found is that node, with the metadata that the pin always has: fewer pins, or
    others, are another prompt.
    """
    if found is None or own is None:
        node: BaseNode = as_node(passage).node
    elif passage.id != own.id:
        node = found.node
    else:
        node = found.node.model_copy(update={"metadata": as_node(passage).node.metadata})
    return NodeWithScore(node=node, score=score)
