"""Many questions find together what each finds alone, with as little embedding as that allows."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest
from langchain_core.documents import Document
from langchain_core.embeddings import Embeddings
from langchain_core.vectorstores import InMemoryVectorStore

from centroidkv.errors import ConfigError
from centroidkv.knowledge import KnowledgeBase
from centroidkv.preparing.batch_retrieval import PROBES, retrieve_many
from centroidkv.types import Passage
from small_parts import HashEmbedder

TEXTS = [f"{a} {b}" for a in ("lost card", "wire abroad", "early loan") for b in "abcdefg"]
QUESTIONS = [f"{t} please {i}" for i, t in enumerate(TEXTS)]
OWN = HashEmbedder()


class CountedEmbeddings(Embeddings):
    """LangChain's face of the hash embedder; `turn` makes it another model, `ask` a prefix."""

    def __init__(self, *, turn: int = 0, ask: str = "") -> None:
        self._turn = turn
        self._ask = ask
        self.num_single = 0
        self.num_batched = 0

    def _embed(self, texts: Sequence[str]) -> list[list[float]]:
        return np.roll(OWN.embed(texts), self._turn, axis=1).tolist()

    def embed_query(self, text: str) -> list[float]:
        self.num_single += 1
        return self._embed([f"{self._ask} {text}"])[0]

    def embed_documents(self, texts: list[str]) -> list[list[float]]:
        self.num_batched += len(texts)
        return self._embed(texts)


def vector_retriever(embeddings: CountedEmbeddings, store: type = InMemoryVectorStore) -> Any:
    filled = store(embeddings)
    filled.add_documents([Document(page_content=t) for t in TEXTS])
    embeddings.num_batched = 0
    return filled.as_retriever(search_kwargs={"k": 2})


def together(retriever: Any, depth: int = 5) -> list[list[Passage]]:
    return list(retrieve_many(retriever, QUESTIONS, OWN.embed(QUESTIONS), depth))


def alone(retriever: Any, depth: int = 5) -> list[list[str]]:
    return [[d.page_content for d in retriever.invoke(q, k=depth)] for q in QUESTIONS]


def found_texts(found: list[list[Passage]]) -> list[list[str]]:
    return [[p.text for p in row] for row in found]


def test_a_store_with_our_embedder_is_asked_by_the_vectors_at_hand() -> None:
    embeddings = CountedEmbeddings()
    retriever = vector_retriever(embeddings)
    found = together(retriever)
    assert embeddings.num_single <= 2 * PROBES and embeddings.num_batched == 0
    assert found_texts(found) == alone(retriever)


def test_a_store_with_another_embedder_is_asked_in_batches() -> None:
    embeddings = CountedEmbeddings(turn=3)
    retriever = vector_retriever(embeddings)
    found = together(retriever)
    assert embeddings.num_single <= 2 * PROBES
    assert len(QUESTIONS) <= embeddings.num_batched <= len(QUESTIONS) + PROBES
    assert found_texts(found) == alone(retriever)


def test_a_store_that_embeds_questions_unlike_documents_is_asked_one_by_one() -> None:
    embeddings = CountedEmbeddings(ask="query:")
    retriever = vector_retriever(embeddings)
    found = together(retriever)
    assert embeddings.num_single >= len(QUESTIONS)
    assert found_texts(found) == alone(retriever)


class TextStore(InMemoryVectorStore):
    """A store whose search looks at the text too, so that a vector is not the whole question."""

    def similarity_search(self, query: str, k: int = 4, **kwargs: Any) -> list[Document]:
        return super().similarity_search(query, k, **kwargs)[::-1]


class NoVectorStore(InMemoryVectorStore):
    """A store that cannot be asked by vector."""

    def similarity_search(self, query: str, k: int = 4, **kwargs: Any) -> list[Document]:
        vector = self.embedding.embed_query(query)
        return super().similarity_search_by_vector(vector, k, **kwargs)

    def similarity_search_by_vector(self, *args: Any, **kwargs: Any) -> list[Document]:
        raise NotImplementedError


@pytest.mark.parametrize("store", [TextStore, NoVectorStore])
def test_a_store_whose_search_is_not_by_vector_is_asked_by_text(store: type) -> None:
    retriever = vector_retriever(CountedEmbeddings(), store)
    assert found_texts(together(retriever)) == alone(retriever)


def test_a_function_is_asked_one_by_one_and_cut_to_the_depth() -> None:
    assert found_texts(together(lambda q: [q] * 9, depth=3)) == [[q] * 3 for q in QUESTIONS]


@pytest.mark.parametrize("turn", [0, 3])
def test_our_own_knowledge_base_finds_the_same_with_any_embedder(turn: int) -> None:
    class Turned(HashEmbedder):
        def embed(self, texts: Sequence[str]) -> np.ndarray:
            return np.roll(super().embed(texts), turn, axis=1)

    base = KnowledgeBase([Passage.of(t) for t in TEXTS], Turned())
    assert together(base) == [base.search(q, 5) for q in QUESTIONS]


def test_what_is_no_retriever_is_refused() -> None:
    with pytest.raises(ConfigError, match="is not a retriever"):
        together(3)
