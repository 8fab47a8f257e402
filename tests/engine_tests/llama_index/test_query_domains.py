"""A postprocessor may keep to the clusters that serve a domain."""

import pytest
from llama_index.core.schema import QueryBundle

from centroidkv import Engine
from centroidkv.llama_index import CentroidKVPostprocessor
from word_bank import DOMAINS, PASSAGES, QUESTIONS, search

ASKED = QueryBundle("please block my lost card")


@pytest.mark.parametrize(("domain", "pinned"), [(None, 1), ("cards", 1), ("loans", 0), ("x", 0)])
def test_pins_come_from_the_clusters_that_serve_the_domain(
    engine: Engine, domain: str | None, pinned: int
) -> None:
    engine.build(
        questions=QUESTIONS,
        domains=DOMAINS,
        retriever=search,
        num_clusters=3,
        max_pins=1,
        pca_dim=8,
    )
    postprocessor = CentroidKVPostprocessor(engine=engine, domain=domain)
    found = postprocessor.postprocess_nodes([], ASKED)
    assert len(found) == pinned
    assert all(node.text.strip() == PASSAGES["card"].strip() for node in found)
