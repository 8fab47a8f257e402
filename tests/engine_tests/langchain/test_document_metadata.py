"""What the retriever wrapper makes of a document's metadata and id, today and after reopening."""

from collections.abc import Callable
from datetime import date
from typing import Any

import pytest
from langchain_core.documents import Document
from langchain_core.prompts import PromptTemplate, format_document
from langchain_core.retrievers import BaseRetriever

from centroidkv import Engine
from langchain_parts import ASKED, pinned
from word_bank import PASSAGES, QUESTIONS

ODD = {"when": date(2020, 1, 1), "tags": {"y", "x"}, "pair": (1, 2), "by": {1: 2, "a": (3,)}}
PLAIN = {"when": "2020-01-01", "tags": ["x", "y"], "pair": [1, 2], "by": {"1": 2, "a": [3]}}
SHOWN = PromptTemplate.from_template("{when} {tags} {pair} {by}: {page_content}")


def documents() -> list[Document]:
    return [
        Document(page_content=text, id=f"doc-{name}", metadata=dict(ODD))
        for name, text in PASSAGES.items()
    ]


class OddRetriever(BaseRetriever):
    """Finds one document by shared words, or those whose names are given."""

    only: list[str] | None = None

    def _get_relevant_documents(self, query: str, *, run_manager: Any) -> list[Document]:
        if self.only is not None:
            return [d for d in documents() if d.id in self.only]
        words = set(query.split())
        return sorted(documents(), key=lambda d: -len(words & set(d.page_content.split())))[:1]


def build(engine: Engine) -> None:
    engine.build(
        questions=QUESTIONS, retriever=OddRetriever(), num_clusters=3, max_pins=1, pca_dim=8
    )


@pytest.mark.parametrize("name", ["card", "loan"])
def test_metadata_is_the_same_before_and_after_reopening(
    open_engine: Callable[..., Engine], name: str
) -> None:
    """Of a pin, whether it was found or not; of anything else, as the base has it."""
    answers = []
    for _ in range(2):
        engine = open_engine(pins_by="nearest")
        if not answers:
            build(engine)
        answers.append(pinned(engine, OddRetriever(only=[f"doc-{name}"])).invoke(ASKED))
        engine.close()
    assert answers[0] == answers[1]
    assert [d.metadata for d in answers[0]] == ([PLAIN] if name == "card" else [PLAIN, ODD])


def test_a_pin_is_shown_alike_whether_it_was_found_or_not(engine: Engine) -> None:
    build(engine)
    found, not_found = (
        pinned(engine, OddRetriever(only=only)).invoke(ASKED)[0] for only in (["doc-card"], [])
    )
    assert format_document(found, SHOWN) == format_document(not_found, SHOWN)


def test_ids_of_what_was_found_are_kept(engine: Engine) -> None:
    build(engine)
    both = pinned(engine, OddRetriever(only=["doc-card", "doc-loan"])).invoke(ASKED)
    assert sorted(d.id for d in both) == ["doc-card", "doc-loan"]
    assert [d.id for d in pinned(engine, OddRetriever(only=[])).invoke(ASKED)] == [None]


async def test_metadata_that_cannot_be_sorted_is_no_error(engine: Engine) -> None:
    retriever = pinned(engine, OddRetriever())
    assert retriever.invoke(ASKED)[0].metadata == ODD, "without a plan, what the base has"
    assert [d.metadata for (d,) in retriever.batch([ASKED, ASKED])] == [ODD, ODD]
    assert (await retriever.ainvoke(ASKED))[0].metadata == ODD


def test_a_plan_over_numbers_that_are_none_is_there_after_reopening(
    open_engine: Callable[..., Engine],
) -> None:
    texts = [Document(page_content=t, metadata={"n": float("nan")}) for t in PASSAGES.values()]
    engine = open_engine()
    engine.build(questions=QUESTIONS, retriever=lambda _: texts, num_clusters=3, pca_dim=8)
    made = engine.router.plan
    engine.close()
    reopened = open_engine()
    assert made is not None and reopened.router.plan is not None
    assert reopened.router.plan.passages == made.passages


@pytest.mark.parametrize("is_built", [True, False])
def test_of_documents_of_equal_text_the_first_is_kept(engine: Engine, is_built: bool) -> None:
    if is_built:
        build(engine)
    pages = [Document(page_content="the same", metadata={"page": n}, id=str(n)) for n in (1, 2)]

    class Pages(BaseRetriever):
        def _get_relevant_documents(self, query: str, *, run_manager: Any) -> list[Document]:
            return pages

    assert pinned(engine, Pages()).invoke(ASKED)[-1:] == pages[:1]
    assert len(pinned(engine, Pages()).invoke(ASKED)) == 1 + is_built
