"""LlamaIndex pieces over the word bank: a retriever of any nodes, a query engine, a warm engine."""

from collections.abc import Sequence
from typing import Any

from llama_index.core import get_response_synthesizer
from llama_index.core.base.base_retriever import BaseRetriever
from llama_index.core.query_engine import RetrieverQueryEngine
from llama_index.core.schema import BaseNode, NodeWithScore, QueryBundle, TextNode

from centroidkv import Engine
from centroidkv.llama_index import CentroidKVLLM, CentroidKVPostprocessor
from word_bank import PASSAGES, QUESTIONS

ASKED = "please block my lost card"

__all__ = ["ASKED", "WordRetriever", "build_and_warm", "passage_nodes", "query_engine"]


def passage_nodes() -> list[TextNode]:
    return [TextNode(text=text, id_=name) for name, text in PASSAGES.items()]


class WordRetriever(BaseRetriever):
    """Finds nodes by shared words; like an index, it hands out copies."""

    def __init__(self, nodes: Sequence[BaseNode] | None = None, k: int = 1) -> None:
        super().__init__()
        self.nodes = passage_nodes() if nodes is None else list(nodes)
        self.k = k

    def _retrieve(self, query_bundle: QueryBundle) -> list[NodeWithScore]:
        words = set(query_bundle.query_str.lower().split())
        scored = [(len(words & set(n.get_content().lower().split())), n) for n in self.nodes]
        ranked = sorted(scored, key=lambda pair: -pair[0])[: self.k]
        return [
            NodeWithScore(node=node.model_copy(deep=True), score=float(score))
            for score, node in ranked
        ]


def query_engine(
    engine: Engine,
    *,
    retriever: BaseRetriever | None = None,
    later: Sequence[Any] = (),
    streaming: bool = False,
    **options: Any,
) -> RetrieverQueryEngine:
    """Build a query engine; `later` are the postprocessors behind ours."""
    llm = CentroidKVLLM(engine=engine, **{"max_tokens": 8, **options})
    return RetrieverQueryEngine(
        retriever=retriever or WordRetriever(),
        response_synthesizer=get_response_synthesizer(llm=llm, streaming=streaming),
        node_postprocessors=[CentroidKVPostprocessor(engine=engine), *later],
    )


def build_and_warm(
    engine: Engine, run: Any, retriever: BaseRetriever | None = None, *, max_pins: int = 1
) -> None:
    """Three clusters with their pinned passages, filled by a query engine."""
    engine.build(
        questions=QUESTIONS,
        retriever=retriever or WordRetriever(),
        num_clusters=3,
        max_pins=max_pins,
        pca_dim=8,
    )
    report = engine.warm(run)
    assert report.filled == report.num_clusters > 0, report
    assert report.problems == {}
