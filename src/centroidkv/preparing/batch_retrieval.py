"""Asking a retriever for many questions, without embedding each of them once more.

A vector store's retriever embeds every question by itself, which for many questions takes longer
than all the rest of a build. Where it can be asked by vector, and a few questions show that this
finds the same, the vectors at hand are used, or the store's own embedder is run in batches. Other
retrievers are asked question by question. Knows no framework: methods are looked for.
"""

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np

from centroidkv.knowledge import KnowledgeBase
from centroidkv.retrieval import DeepRetrieve, as_passage, deep_retrieve
from centroidkv.types import FloatArray, Passage

__all__ = ["retrieve_many"]

PROBES = 4
BATCH = 1024
SAME = 1e-4  # largest difference of one number in two vectors of the same text


def retrieve_many(
    retriever: Any, questions: Sequence[str], vectors: FloatArray, depth: int
) -> Iterator[list[Passage]]:
    """Yield what each question finds, at most `depth` passages, best first.

    `vectors` are the questions' embeddings by the engine's embedder, [questions, dim].

    Raises:
        ConfigError: Not a retriever.
    """
    if isinstance(retriever, KnowledgeBase):
        yield from _from_our_own(retriever, questions, vectors, depth)
        return
    retrieve = deep_retrieve(retriever)
    parts = _vector_parts(retriever, retrieve, questions, vectors, depth)
    if parts is None:
        for question in questions:
            yield list(retrieve(question, depth))[:depth]
        return
    for part in parts:
        for vector in part:
            yield _by_vector(retriever, vector, depth)


def _from_our_own(
    base: KnowledgeBase, questions: Sequence[str], vectors: FloatArray, depth: int
) -> Iterator[list[Passage]]:
    if _is_same(base.embed(questions[:PROBES]), vectors[:PROBES]):
        yield from base.search_many(vectors, depth)
        return
    for question in questions:
        yield base.search(question, depth)


def _vector_parts(
    retriever: Any,
    retrieve: DeepRetrieve,
    questions: Sequence[str],
    vectors: FloatArray,
    depth: int,
) -> Iterator[FloatArray] | None:
    """Return the vectors to ask a retriever by, in parts; None where it must be asked by text."""
    store = getattr(retriever, "vectorstore", None)
    embedder: Any = getattr(store, "embeddings", None)
    can_ask = hasattr(store, "similarity_search_by_vector") and embedder is not None
    if not can_ask or getattr(retriever, "search_type", "") != "similarity":
        return None
    probes = list(questions[:PROBES])
    asked = np.array([embedder.embed_query(q) for q in probes], np.float32)
    try:
        by_vector = [_by_vector(retriever, v, depth) for v in asked]
    except NotImplementedError:
        return None
    if by_vector != [list(retrieve(q, depth))[:depth] for q in probes]:
        return None
    if _is_same(asked, vectors[: len(probes)]):
        return iter([vectors])
    if _is_same(asked, np.array(embedder.embed_documents(probes), np.float32)):
        return _embedded(embedder, questions)
    return None


def _embedded(embedder: Any, questions: Sequence[str]) -> Iterator[FloatArray]:
    for start in range(0, len(questions), BATCH):
        part = list(questions[start : start + BATCH])
        yield np.array(embedder.embed_documents(part), np.float32)


def _by_vector(retriever: Any, vector: FloatArray, depth: int) -> list[Passage]:
    options = {**retriever.search_kwargs, "k": depth}
    found = retriever.vectorstore.similarity_search_by_vector(vector.tolist(), **options)
    return [as_passage(d) for d in found][:depth]


def _is_same(one: FloatArray, other: FloatArray) -> bool:
    return one.shape == other.shape and bool(np.allclose(one, other, rtol=0, atol=SAME))
