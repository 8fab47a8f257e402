"""Retrievers of LangChain and LlamaIndex, and plain functions, look the same from inside."""

from typing import Any

import pytest

from centroidkv.errors import ConfigError
from centroidkv.retrieval import as_passage, deep_retrieve
from centroidkv.types import Passage

TEXTS = ["cards", "loans", "wires"]


def found(retriever: Any, k: int = 2) -> list[str]:
    return [p.text for p in deep_retrieve(retriever)("q", k)]


def test_passages_and_strings_are_passages() -> None:
    passage = Passage.of("cards", {"n": 1})
    assert as_passage(passage) is passage
    assert as_passage("cards") == Passage.of("cards")


def test_a_langchain_document_keeps_text_and_metadata() -> None:
    from langchain_core.documents import Document

    made = as_passage(Document("cards", metadata={"source": "faq"}))
    assert (made.text, made.metadata) == ("cards", {"source": "faq"})
    assert made.id == Passage.of("cards", {"source": "faq"}).id


def test_a_llama_index_node_keeps_text_and_metadata() -> None:
    from llama_index.core.schema import NodeWithScore, TextNode

    node = TextNode(text="cards", metadata={"source": "faq"})
    for given in (node, NodeWithScore(node=node, score=0.5)):
        made = as_passage(given)
        assert (made.text, made.metadata) == ("cards", {"source": "faq"})


def test_the_id_follows_from_the_content() -> None:
    assert as_passage("cards").id == as_passage("cards").id != as_passage("card").id
    assert Passage.of("a", {"x": 1, "y": 2}).id == Passage.of("a", {"y": 2, "x": 1}).id
    assert Passage.of("a", {"x": 1}).id != Passage.of("a", {"x": 2}).id
    assert Passage.of("a").id == "678fabb905d80c8ba8e36c68ac6ca58e212bea991f215cf080f9abfbd70c5ae3"


def test_text_that_is_not_unicode_is_made_so() -> None:
    assert as_passage("lone \ud800").text == "lone ?"
    for odd in (Passage("id", "lone \ud800"), Passage.of("lone \ud800")):
        as_passage(odd).text.encode()


@pytest.mark.parametrize("document", [3, None, {"text": "cards"}, ["cards"]])
def test_anything_else_is_named(document: object) -> None:
    with pytest.raises(ConfigError, match=type(document).__name__):
        as_passage(document)
    with pytest.raises(ConfigError, match=type(document).__name__):
        deep_retrieve(lambda q: [document])("q", 1)


def test_a_function_is_a_retriever() -> None:
    asked: list[str] = []

    def retrieve(question: str) -> list[str]:
        asked.append(question)
        return TEXTS

    assert found(retrieve) == TEXTS and asked == ["q"]


def test_a_langchain_vector_store_is_asked_for_as_many_as_are_wanted() -> None:
    from langchain_core.embeddings import DeterministicFakeEmbedding
    from langchain_core.vectorstores import InMemoryVectorStore

    store = InMemoryVectorStore(DeterministicFakeEmbedding(size=8))
    store.add_texts([f"passage {i}" for i in range(10)])
    retriever = store.as_retriever(search_kwargs={"k": 2})
    assert len(found(retriever, 7)) == 7
    assert retriever.search_kwargs == {"k": 2}, "the user's retriever is left as it was"
    assert len(retriever.invoke("q")) == 2


def test_another_langchain_retriever_is_asked_as_it_is() -> None:
    from langchain_core.documents import Document
    from langchain_core.retrievers import BaseRetriever

    class Fixed(BaseRetriever):
        def _get_relevant_documents(self, query: str, *, run_manager: Any) -> list[Document]:
            return [Document(t) for t in TEXTS]

    assert found(Fixed()) == TEXTS


def test_a_llama_index_retriever_is_asked_by_its_own_method() -> None:
    from llama_index.core.base.base_retriever import BaseRetriever
    from llama_index.core.schema import NodeWithScore, QueryBundle, TextNode

    class Fixed(BaseRetriever):
        def _retrieve(self, query_bundle: QueryBundle) -> list[NodeWithScore]:
            return [NodeWithScore(node=TextNode(text=t)) for t in TEXTS]

    assert found(Fixed()) == TEXTS


@pytest.mark.parametrize("retriever", [3, "retriever", None, object()])
def test_what_is_no_retriever_is_named(retriever: object) -> None:
    with pytest.raises(ConfigError, match=f"{type(retriever).__name__} is not a retriever"):
        deep_retrieve(retriever)
