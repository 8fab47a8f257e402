"""Tenants of one store: each finds its own, none finds another's, per request."""

import asyncio
import base64
import contextlib
import gc
import sqlite3
import threading
import weakref
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

import pytest
from langchain_core.caches import InMemoryCache
from langchain_core.documents import Document
from langchain_core.prompts import PromptTemplate
from langchain_core.retrievers import BaseRetriever
from langchain_core.runnables import RunnablePassthrough

from centroidkv import Engine
from centroidkv.errors import ConfigError
from centroidkv.langchain import CentroidKVLLM, CentroidKVRetriever, ChatCentroidKV
from centroidkv.llama_index import CentroidKVLLM as LlamaIndexLLM
from word_bank import QUESTIONS, ask, build_and_warm, search

TEXT = "A savings account at Harbour Bank has no monthly fee and pays two percent. " * 3
ACME = {"metadata": {"centroidkv_tenant": "acme"}}
ZETA = {"metadata": {"centroidkv_tenant": "zeta"}}


class Words(BaseRetriever):
    """The bank's search as a LangChain retriever."""

    def _get_relevant_documents(self, query: str, *, run_manager: object) -> list[Document]:
        return [Document(page_content=p.text) for p in search(query)[:1]]


def rag_chain(engine: Engine, llm: object):
    prompt = PromptTemplate.from_template("Answer.\n\n{context}\n\nQuestion: {question}")
    retriever = CentroidKVRetriever(engine=engine, base=Words())
    context = retriever | (lambda found: "\n\n".join(d.page_content for d in found))
    return {"context": context, "question": RunnablePassthrough()} | prompt | llm


def test_a_tenant_finds_its_own_kv_and_no_other_finds_it(engine: Engine) -> None:
    acme, zeta = engine.for_tenant("acme"), engine.for_tenant("zeta")
    first = acme.generate(TEXT, max_tokens=4)
    engine.flush()
    again = acme.generate(TEXT, max_tokens=4)
    assert again.usage.reused_tokens > 100
    for other in (zeta, engine):
        foreign = other.generate(TEXT, max_tokens=4)
        assert foreign.usage.reused_tokens == 0
        assert foreign.token_ids == again.token_ids == first.token_ids


def test_nothing_holds_the_engine_of_a_tenant_that_was_closed(engine: Engine) -> None:
    tenant = engine.for_tenant("acme")
    tenant.generate(TEXT, max_tokens=2)
    tenant.close()
    gone = weakref.ref(tenant)
    del tenant
    gc.collect()
    assert gone() is None
    assert engine.for_tenant("acme").generate(TEXT, max_tokens=2).usage.reused_tokens > 100


def test_a_tenant_is_the_same_as_one_opened_by_name(
    open_engine: Callable[..., Engine], tmp_path
) -> None:
    engine = open_engine()
    engine.for_tenant("acme").generate(TEXT, max_tokens=2)
    engine.close()
    alone = open_engine(tenant="acme")
    assert alone.generate(TEXT, max_tokens=2).usage.reused_tokens > 100
    assert alone.for_tenant("").generate(TEXT, max_tokens=2).usage.reused_tokens == 0


def test_it_is_one_engine_a_tenant(engine: Engine) -> None:
    assert engine.for_tenant("acme") is engine.for_tenant("acme")
    assert engine.for_tenant("") is engine
    acme = engine.for_tenant("acme")
    assert acme.config.tenant == "acme"
    assert acme.for_tenant("zeta") is engine.for_tenant("zeta")
    assert acme.for_tenant("") is engine


def test_plans_of_tenants_are_their_own(engine: Engine) -> None:
    acme, zeta = engine.for_tenant("acme"), engine.for_tenant("zeta")
    build_and_warm(acme)
    assert ask(acme, QUESTIONS[0]).usage.outcome == "hit"
    assert engine.router.plan is None
    assert zeta.router.plan is None
    assert ask(zeta, QUESTIONS[0]).usage.reused_tokens == 0
    build_and_warm(zeta)
    assert ask(zeta, QUESTIONS[0]).usage.outcome == "hit"
    assert engine.check().problems == []
    assert acme.check().problems == zeta.check().problems == []


def test_closing_closes_all_and_the_store_opens_again(
    open_engine: Callable[..., Engine],
) -> None:
    engine = open_engine()
    acme = engine.for_tenant("acme")
    build_and_warm(acme)
    engine.close()
    with pytest.raises(ConfigError, match="closed"):
        acme.generate("hi")
    with pytest.raises(ConfigError, match="closed"):
        engine.for_tenant("new")
    again = open_engine().for_tenant("acme")
    assert ask(again, QUESTIONS[1]).usage.outcome == "hit"


def test_closing_while_tenants_come_leaves_none_open(open_engine: Callable[..., Engine]) -> None:
    engine = open_engine()
    made: list[Engine] = []
    has_begun = threading.Event()

    def come() -> None:
        with contextlib.suppress(ConfigError):
            for number in range(1000):
                made.append(engine.for_tenant(f"tenant {number}"))
                has_begun.set()

    with ThreadPoolExecutor(1) as pool:
        coming = pool.submit(come)
        assert has_begun.wait(10)
        engine.close()
        coming.result()
    assert 0 < len(made) < 1000
    assert all(tenant.is_closed for tenant in made)


def test_what_a_tenant_raises_when_it_is_closed_keeps_nothing_else_open(
    open_engine: Callable[..., Engine], monkeypatch: pytest.MonkeyPatch
) -> None:
    engine = open_engine()

    def fail() -> None:
        raise OSError("no such disk")

    monkeypatch.setattr(engine.for_tenant("acme"), "close", fail)
    with pytest.raises(OSError, match="no such disk"):
        engine.close()
    with pytest.raises(sqlite3.ProgrammingError, match="closed"):
        engine.store.blocks.disk.manifest.counters()


def test_a_tenants_engine_may_be_closed_alone(engine: Engine) -> None:
    acme = engine.for_tenant("acme")
    acme.generate(TEXT, max_tokens=2)
    acme.close()
    assert engine.generate(TEXT, max_tokens=2).text
    assert engine.for_tenant("acme").generate(TEXT, max_tokens=2).usage.reused_tokens > 100


@pytest.mark.parametrize("kind", [CentroidKVLLM, ChatCentroidKV])
def test_a_chain_serves_the_tenant_its_config_names(engine: Engine, kind: type) -> None:
    chain = rag_chain(engine, kind(engine=engine, max_tokens=6))
    engine.for_tenant("acme").build(
        questions=QUESTIONS, retriever=search, num_clusters=3, max_pins=1, pca_dim=8
    )
    report = engine.for_tenant("acme").warm(lambda q: chain.invoke(q, config=ACME))
    assert report.filled == 3, report.problems

    def usage(config: dict) -> dict:
        seen: list[dict] = []

        def note(run) -> None:
            if run.run_type in ("llm", "chat_model"):
                seen.append(run.outputs["generations"][0][0])

        model = chain.steps[-1]
        listened = chain.steps[0] | chain.steps[1] | model.with_listeners(on_end=note)
        listened.invoke(QUESTIONS[0], config=config)
        found = seen[0]
        if "message" in found:
            return found["message"]["kwargs"]["response_metadata"]["usage"]
        return found["generation_info"]["usage"]

    assert usage(ACME)["outcome"] == "hit"
    assert usage(ACME)["reason"] == "pinned_prefix"
    assert usage(ZETA)["cluster"] is None
    assert usage({})["cluster"] is None


@pytest.mark.parametrize("kind", [CentroidKVLLM, ChatCentroidKV])
async def test_every_way_to_call_is_tenant_scoped(engine: Engine, kind: type) -> None:
    model = kind(engine=engine, max_tokens=2)
    count = engine.for_tenant("acme").store.blocks.disk.manifest.num_blocks
    model.invoke(TEXT, config=ACME)
    engine.flush()
    stored = count()
    assert stored > 0
    list(model.stream(TEXT, config=ACME))
    await model.ainvoke(TEXT, config=ACME)
    _ = [chunk async for chunk in model.astream(TEXT, config=ACME)]
    model.batch([TEXT], config=ACME)
    await model.abatch([TEXT], config=[ACME])
    model.invoke(TEXT, tenant="acme")
    model.bind(tenant="acme").invoke(TEXT)
    engine.flush()
    assert count() == stored, "a call missed its tenant and stored the KV again"
    list(model.stream(TEXT, config=ZETA))
    engine.flush()
    assert count() == 2 * stored


@pytest.mark.parametrize("kind", [CentroidKVLLM, ChatCentroidKV])
def test_a_batch_may_hold_several_tenants(engine: Engine, kind: type) -> None:
    model = kind(engine=engine, max_tokens=2)
    model.batch([TEXT, TEXT], config=[ACME, ZETA])
    engine.flush()
    for tenant, found in (("acme", True), ("zeta", True), ("", False)):
        usage = engine.for_tenant(tenant).generate(TEXT, max_tokens=2).usage
        assert bool(usage.reused_tokens) is found


@pytest.mark.parametrize("kind", [CentroidKVLLM, ChatCentroidKV])
def test_an_answer_cache_serves_no_other_tenant(engine: Engine, kind: type) -> None:
    cache = InMemoryCache()
    model = kind(engine=engine, max_tokens=3, cache=cache)
    for config in (ACME, ACME, ZETA, {}):
        model.invoke("hello", config=config)
    assert len(cache._cache) == 3
    kind(engine=engine.for_tenant("acme"), max_tokens=3, cache=cache).invoke("hello")
    assert len(cache._cache) == 3


@pytest.mark.parametrize("kind", [CentroidKVLLM, ChatCentroidKV])
def test_an_answer_cache_minds_the_arguments_of_a_call(engine: Engine, kind: type) -> None:
    model = kind(engine=engine, max_tokens=3, cache=InMemoryCache())
    short = model.invoke("hello", max_tokens=1)
    long = model.invoke("hello", max_tokens=9)
    texts = [m if isinstance(m, str) else m.content for m in (short, long)]
    assert len(texts[0]) < len(texts[1])


def test_one_call_of_generate_serves_one_tenant(engine: Engine) -> None:
    llm = CentroidKVLLM(engine=engine, max_tokens=2)
    rows = [ACME["metadata"], ZETA["metadata"]]
    with pytest.raises(ConfigError, match="one centroidkv_tenant"):
        llm.generate(["a", "b"], metadata=rows, callbacks=[None, None])


def test_llama_index_takes_a_tenant_per_call(engine: Engine) -> None:
    llm = LlamaIndexLLM(engine=engine, max_tokens=2)
    llm.complete(TEXT, tenant="acme")
    engine.flush()
    assert llm.complete(TEXT, tenant="acme").raw["usage"]["reused_tokens"] > 100
    assert llm.complete(TEXT, tenant="zeta").raw["usage"]["reused_tokens"] == 0
    assert asyncio.run(llm.acomplete(TEXT)).raw["usage"]["reused_tokens"] == 0


@pytest.mark.parametrize("tenant", [None, 3, b"acme"])
def test_a_tenant_is_a_name(engine: Engine, tenant: object) -> None:
    with pytest.raises(ConfigError, match="tenant must be a string"):
        engine.for_tenant(tenant)  # type: ignore[arg-type]


def test_ids_of_a_tenant_need_the_secret(open_engine: Callable[..., Engine]) -> None:
    secrets = [base64.b64encode(bytes([n] * 32)).decode() for n in (1, 2)]
    with open_engine(tenant="ours", tenant_secret=secrets[0]) as engine:
        build_and_warm(engine)
        assert ask(engine, QUESTIONS[0]).usage.outcome == "hit"
        own = engine._learner.namespace
    for secret in (secrets[1], None):
        with open_engine(tenant="ours", tenant_secret=secret) as other:
            assert other.router.plan is None and other._learner.namespace != own
            assert ask(other, QUESTIONS[0]).usage.reused_tokens == 0
    with open_engine(tenant="ours", tenant_secret=secrets[0]) as engine:
        assert ask(engine, QUESTIONS[0]).usage.outcome == "hit"
        assert secrets[0] not in repr(engine.config)
        others = engine.for_tenant("theirs")
        assert ask(others, QUESTIONS[0]).usage.reused_tokens == 0
    with pytest.raises(ConfigError, match="tenant_secret must be 32 bytes"):
        open_engine(tenant_secret="secret")
