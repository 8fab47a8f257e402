"""A chain's config, or the retriever, names the domain of a request."""

from typing import Any

import pytest

from centroidkv import Engine
from centroidkv.errors import ConfigError
from centroidkv.langchain import CentroidKVRetriever
from langchain_parts import ASKED, WordRetriever, chat_chain, usage_of
from word_bank import DOMAINS, QUESTIONS


@pytest.fixture
def built(engine: Engine) -> Engine:
    engine.build(
        questions=QUESTIONS,
        domains=DOMAINS,
        retriever=WordRetriever(),
        num_clusters=3,
        max_pins=1,
        pca_dim=8,
    )
    return engine


def named(domain: Any) -> dict[str, Any]:
    return {"metadata": {"centroidkv_domain": domain}}


def test_the_metadata_of_a_chain_names_the_domain(built: Engine) -> None:
    chain = chat_chain(built)
    built.warm(chain.invoke)
    learnt = usage_of(chain.invoke(ASKED))
    given = usage_of(chain.invoke(ASKED, config=named("cards")))
    assert (learnt["domain"], given["domain"]) == ("cards", "cards")
    assert learnt["cluster"] == given["cluster"] is not None
    other = usage_of(chain.invoke(ASKED, config=named("loans")))
    assert other["cluster"] is None and other["domain"] == "loans"


async def test_async_chains_too(built: Engine) -> None:
    chain = chat_chain(built)
    other = usage_of(await chain.ainvoke(ASKED, config=named("loans")))
    assert other["cluster"] is None and other["domain"] == "loans"


def test_a_retriever_may_have_a_domain_and_the_metadata_goes_before_it(built: Engine) -> None:
    retriever = CentroidKVRetriever(engine=built, base=WordRetriever(k=3), domain="loans")
    assert len(retriever.invoke(ASKED)) == 3
    first = retriever.invoke("repay my personal loan early")[0]
    assert "personal loan" in first.page_content
    record = built.route(ASKED, domain="cards")
    assert record.is_admitted
    assert "lost card" in retriever.invoke(ASKED, config=named("cards"))[0].page_content


def test_a_domain_that_is_no_text_is_refused(built: Engine) -> None:
    with pytest.raises(ConfigError, match="domain must be a text"):
        chat_chain(built).invoke(ASKED, config=named(7))
