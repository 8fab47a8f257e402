"""The adapters inside LlamaIndex's own flows, on a random model."""

import json
from collections.abc import Callable
from typing import Any

import pytest
from llama_index.core import Document
from llama_index.core.node_parser import SentenceWindowNodeParser
from llama_index.core.postprocessor import (
    MetadataReplacementPostProcessor,
    SimilarityPostprocessor,
)
from llama_index.core.query_engine import RetrieverQueryEngine
from llama_index.core.schema import BaseNode

from centroidkv import Engine
from centroidkv.errors import ConfigError
from centroidkv.llama_index import CentroidKVLLM, CentroidKVPostprocessor
from llama_index_parts import ASKED, WordRetriever, build_and_warm, query_engine
from word_bank import PASSAGES, QUESTIONS


@pytest.fixture
def warm(engine: Engine) -> Engine:
    build_and_warm(engine, query_engine(engine).query)
    return engine


# sentences that bring their window along


def sentence_nodes() -> list[BaseNode]:
    parser = SentenceWindowNodeParser.from_defaults(
        window_size=1, sentence_splitter=lambda text: [f"{s}." for s in text.split(".") if s]
    )
    texts = {
        "card": "A lost card is blocked in the app.A new card comes in five days.It is free.",
        "wire": "A wire to another country costs twenty.A wire takes two days.Mind the date.",
        "loan": "A personal loan can be repaid early.A charge of one month is due.Ask us.",
    }
    return parser.get_nodes_from_documents([Document(text=t) for t in texts.values()])


def window_engine(engine: Engine, **options: Any) -> RetrieverQueryEngine:
    return query_engine(
        engine,
        retriever=WordRetriever(sentence_nodes(), k=2),
        later=[MetadataReplacementPostProcessor(target_metadata_key="window")],
        **options,
    )


def test_windows_replace_pins_and_finds_and_answers_stay_the_same(engine: Engine) -> None:
    found = WordRetriever(sentence_nodes(), k=2)
    build_and_warm(engine, window_engine(engine).query, found, max_pins=2)
    for question in (
        ASKED,
        "can I repay a loan early",
        "how much does a wire to another country cost",
    ):
        response = window_engine(engine).query(question)
        plain = window_engine(engine, reuse="off").query(question)
        assert str(response) == str(plain) != ""
        route = engine.route(question)
        assert route.cluster is not None and route.is_admitted, question
        pins = [p.metadata["window"] for p in engine.router.plan.pinned(route.cluster)]
        shown = [n.node.get_content() for n in response.source_nodes]
        assert len(pins) > 0 and shown[: len(pins)] == pins
        windows = {n.node.metadata["window"] for n in found.retrieve(question)}
        assert windows <= set(shown) and len(shown) == len(set(shown))
    assert engine.stats().counters["outcome_hit"] > 0
    assert engine.check().is_clean


def test_a_window_engine_reuses_in_every_way_of_asking(engine: Engine) -> None:
    found = WordRetriever(sentence_nodes(), k=2)
    build_and_warm(engine, window_engine(engine).query, found, max_pins=2)
    before = engine.stats().counters.get("outcome_hit", 0)
    text = str(window_engine(engine).query(ASKED))
    streamed = window_engine(engine, streaming=True).query(ASKED)
    assert "".join(streamed.response_gen) == text
    assert engine.stats().counters["outcome_hit"] == before + 2


async def test_an_async_query_engine_is_warmed(engine: Engine) -> None:
    engine.build(
        questions=QUESTIONS, retriever=WordRetriever(), num_clusters=3, max_pins=1, pca_dim=8
    )
    report = await engine.awarm(query_engine(engine).aquery)
    assert report.filled == report.num_clusters > 0 and report.problems == {}
    await query_engine(engine).aquery(ASKED)
    assert engine.stats().counters["outcome_hit"] == 1


# postprocessors behind ours


def test_a_cutoff_behind_ours_keeps_the_pins_that_were_not_found(
    open_engine: Callable[..., Engine],
) -> None:
    warm = open_engine(pins_by="nearest")
    build_and_warm(warm, query_engine(warm).query)

    class Others(WordRetriever):
        """An index that the card's passage is missing from."""

        def _retrieve(self, query_bundle: Any) -> Any:
            return [n for n in super()._retrieve(query_bundle) if n.node_id != "card"]

    retriever = Others(k=3)
    best = max(n.score for n in retriever.retrieve(ASKED))
    cutoff = SimilarityPostprocessor(similarity_cutoff=best)
    response = query_engine(warm, retriever=retriever, later=[cutoff]).query(ASKED)
    assert response.source_nodes[0].node.get_content() == PASSAGES["card"]
    assert 1 < len(response.source_nodes) <= 3


async def test_a_cutoff_behind_ours_works_asynchronously(warm: Engine) -> None:
    cutoff = SimilarityPostprocessor(similarity_cutoff=0.5)
    made = query_engine(warm, retriever=WordRetriever(k=3), later=[cutoff])
    assert str(await made.aquery(ASKED)) == str(made.query(ASKED)) != ""
    assert warm.check().is_clean


# what is written down of a model


def test_what_is_written_down_of_a_model_holds_no_engine(engine: Engine) -> None:
    llm = CentroidKVLLM(engine=engine, max_tokens=5)
    written = llm.to_dict()
    assert written["class_name"] == llm.class_name() == "CentroidKVLLM"
    assert written["max_tokens"] == 5
    for text in (json.dumps(written), llm.to_json(), repr(llm), str(llm)):
        assert "Engine(" not in text and str(engine.store.path) not in text
    assert "engine" not in written and "engine" not in json.loads(llm.to_json())


def test_what_is_written_down_of_a_postprocessor_holds_no_engine(engine: Engine) -> None:
    pinning = CentroidKVPostprocessor(engine=engine)
    assert pinning.to_dict()["class_name"] == "CentroidKVPostprocessor"
    for text in (pinning.to_json(), repr(pinning), str(pinning)):
        assert "Engine(" not in text and str(engine.store.path) not in text


def test_metadata_names_the_model_and_its_room(engine: Engine) -> None:
    metadata = CentroidKVLLM(engine=engine, max_tokens=5).metadata
    assert metadata.context_window == engine.model.context_tokens
    assert metadata.num_output == 5 and metadata.is_chat_model
    again = CentroidKVLLM(engine=engine).metadata.model_name
    assert metadata.model_name == again and engine.model.fingerprint[:16] in again


def test_build_and_warm_take_a_query_engine_as_it_is(engine: Engine) -> None:
    asked = query_engine(engine)
    engine.build(questions=QUESTIONS, retriever=asked, num_clusters=3, max_pins=1, pca_dim=8)
    report = engine.warm(asked)
    assert (report.filled, report.problems) == (3, {})


@pytest.mark.parametrize("thing", [None, 5, "chain"])
def test_what_cannot_be_run_cannot_be_warmed_with(engine: Engine, thing: object) -> None:
    engine.build(questions=QUESTIONS, retriever=lambda q: [q], num_clusters=2, pca_dim=8)
    with pytest.raises(ConfigError, match="cannot be warmed with"):
        engine.warm(thing)
