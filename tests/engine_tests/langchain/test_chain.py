"""The LangChain adapters in a plain LCEL chain, on a random model."""

import asyncio
from collections.abc import Callable

import pytest
from langchain_core.caches import InMemoryCache
from langchain_core.callbacks import BaseCallbackHandler
from langchain_core.documents import Document
from langchain_core.globals import set_llm_cache
from langchain_core.output_parsers import JsonOutputParser, StrOutputParser
from langchain_core.prompts import ChatPromptTemplate, PromptTemplate
from langchain_core.retrievers import BaseRetriever
from langchain_core.runnables import RunnableLambda, RunnablePassthrough
from pydantic import Field, ValidationError

from centroidkv import Engine
from centroidkv.errors import ConfigError
from centroidkv.langchain import CentroidKVLLM, CentroidKVRetriever
from word_bank import PASSAGES, QUESTIONS

PROMPT = PromptTemplate.from_template("Answer.\n\n{context}\n\nQuestion: {question}")


class WordRetriever(BaseRetriever):
    """Finds passages by shared words."""

    k: int = 1
    calls: list[str] = Field(default_factory=list)

    def _get_relevant_documents(self, query: str, *, run_manager, k: int | None = None):
        self.calls.append(query)
        words = set(query.lower().split())
        ranked = sorted(
            PASSAGES.items(), key=lambda item: -len(words & set(item[1].lower().split()))
        )
        found = [Document(page_content=text, metadata={"name": name}) for name, text in ranked]
        return found[: k or self.k]


class Witness(BaseCallbackHandler):
    def __init__(self) -> None:
        self.tokens: list[str] = []
        self.usage: dict = {}

    def on_llm_new_token(self, token, **_) -> None:
        self.tokens.append(token)

    def on_llm_end(self, response, **_) -> None:
        self.usage = response.generations[0][0].generation_info["usage"]


def make_chain(engine: Engine, *, parser=None, prompt=PROMPT, **options):
    retriever = CentroidKVRetriever(engine=engine, base=WordRetriever(calls=[]))
    llm = CentroidKVLLM(engine=engine, max_tokens=8, **options)
    context = retriever | (lambda found: "\n\n".join(d.page_content for d in found))
    chain = {"context": context, "question": RunnablePassthrough()} | prompt | llm
    return chain | (parser or StrOutputParser())


@pytest.fixture
def warm(engine: Engine) -> Engine:
    engine.build(
        questions=QUESTIONS, retriever=WordRetriever(), num_clusters=3, max_pins=1, pca_dim=8
    )
    report = engine.warm(make_chain(engine).invoke)
    assert report.filled == report.num_clusters and report.problems == {}
    return engine


def test_a_chain_hits_and_answers_as_without_reuse(warm: Engine) -> None:
    witness = Witness()
    config = {"callbacks": [witness]}
    reused = make_chain(warm).invoke("please block my lost card", config)
    assert witness.usage["outcome"] == "hit"
    assert reused == make_chain(warm, reuse="off").invoke("please block my lost card")


def test_streaming_gives_tokens_usage_and_the_same_text(warm: Engine) -> None:
    witness = Witness()
    pieces = list(make_chain(warm).stream("please block my lost card", {"callbacks": [witness]}))
    assert len([p for p in pieces if p]) > 1
    assert "".join(pieces) == "".join(witness.tokens)
    assert witness.usage["outcome"] == "hit"
    assert "".join(pieces) == make_chain(warm).invoke("please block my lost card")


async def test_async_gives_the_same(warm: Engine) -> None:
    chain = make_chain(warm)
    sync = chain.invoke("please block my lost card")
    assert await chain.ainvoke("please block my lost card") == sync
    assert "".join([p async for p in chain.astream("please block my lost card")]) == sync


async def test_a_cancelled_task_stops_decoding(warm: Engine) -> None:
    llm = CentroidKVLLM(engine=warm, max_tokens=3000)
    task = asyncio.create_task(llm.ainvoke("tell me everything there is"))
    await asyncio.sleep(0.2)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    # The stream under way ends with its current step, so the next answer starts at once.
    assert await CentroidKVLLM(engine=warm, max_tokens=2).ainvoke("short") is not None


def test_a_batch_equals_single_calls(warm: Engine) -> None:
    chain = make_chain(warm)
    assert chain.batch(QUESTIONS[:4]) == [chain.invoke(q) for q in QUESTIONS[:4]]


def test_warming_reaches_no_parser_and_no_answer_cache(engine: Engine) -> None:
    engine.build(
        questions=QUESTIONS, retriever=WordRetriever(), num_clusters=3, max_pins=1, pca_dim=8
    )
    cache = InMemoryCache()
    set_llm_cache(cache)
    try:
        chain = make_chain(engine, parser=JsonOutputParser())
        fallback = RunnableLambda(lambda _: pytest.fail("the fallback ran"))
        guarded = chain.with_retry(stop_after_attempt=3).with_fallbacks([fallback])
        report = engine.warm(guarded.invoke)
    finally:
        set_llm_cache(None)
    assert report.filled == report.num_clusters
    assert cache._cache == {}
    assert "requests" not in engine.stats().counters


def test_a_condensing_call_before_is_answered_in_full_while_warming(engine: Engine) -> None:
    engine.build(
        questions=QUESTIONS, retriever=WordRetriever(), num_clusters=3, max_pins=1, pca_dim=8
    )
    condense = CentroidKVLLM(engine=engine, max_tokens=5)
    condensed: list[str] = []
    chain = make_chain(engine)

    def condensing(question: str) -> str:
        condensed.append(condense.invoke(f"Rewrite as one question: {question}"))
        return chain.invoke(question)

    report = engine.warm(condensing)
    assert report.filled == report.num_clusters
    assert all(condensed)


def test_the_base_retriever_is_not_asked_while_warming(warm: Engine) -> None:
    base = WordRetriever(calls=[])
    retriever = CentroidKVRetriever(engine=warm, base=base)
    llm = CentroidKVLLM(engine=warm, max_tokens=2)
    context = retriever | (lambda found: "\n\n".join(d.page_content for d in found))
    warm.warm(({"context": context, "question": RunnablePassthrough()} | PROMPT | llm).invoke)
    assert base.calls == []


def test_pins_come_first_and_nothing_found_is_lost(warm: Engine) -> None:
    base = WordRetriever(k=3)
    found = base.invoke("please block my lost card")
    composed = CentroidKVRetriever(engine=warm, base=base).invoke("please block my lost card")
    assert {d.metadata["name"] for d in composed} == {d.metadata["name"] for d in found}
    route = warm.route("please block my lost card")
    pinned = warm.router.plan.pinned(route.cluster)
    assert [d.page_content for d in composed[: len(pinned)]] == [p.text for p in pinned]


def test_a_question_outside_every_cluster_keeps_the_base_order(engine: Engine) -> None:
    base = WordRetriever(k=3)
    wrapped = CentroidKVRetriever(engine=engine, base=base)
    assert wrapped.invoke("anything") == base.invoke("anything")
    assert len(wrapped.invoke("anything", k=2)) == 2


def test_chat_prompts_reach_the_model_and_reuse(engine: Engine) -> None:
    prompt = ChatPromptTemplate.from_messages(
        [("system", "Answer from this.\n\n{context}"), ("human", "{question}")]
    )
    chain = make_chain(engine, prompt=prompt)
    engine.build(
        questions=QUESTIONS, retriever=WordRetriever(), num_clusters=3, max_pins=1, pca_dim=8
    )
    assert engine.warm(chain.invoke).filled > 0
    witness = Witness()
    chain.invoke("please block my lost card", {"callbacks": [witness]})
    assert witness.usage["outcome"] == "hit"


def test_the_question_can_be_given_as_metadata(engine: Engine) -> None:
    llm = CentroidKVLLM(engine=engine, max_tokens=2)
    config = {"metadata": {"centroidkv_question": "what?"}}
    assert llm.invoke("a text. what?", config) == llm.invoke("a text. what?")


def test_stop_and_per_call_arguments(engine: Engine) -> None:
    llm = CentroidKVLLM(engine=engine, max_tokens=20)
    full = llm.invoke("a prompt")
    assert llm.invoke("a prompt", stop=[full[5:8]]) == full[: full.index(full[5:8])]
    assert len(llm.bind(max_tokens=3).invoke("a prompt")) < len(full)
    with pytest.raises(ConfigError, match="max_token"):
        llm.invoke("a prompt", max_token=3)


def test_unknown_constructor_arguments_are_errors(engine: Engine) -> None:
    with pytest.raises(ValidationError, match="max_token"):
        CentroidKVLLM(engine=engine, max_token=3)
    with pytest.raises(ValidationError, match="bse"):
        CentroidKVRetriever(engine=engine, base=WordRetriever(), bse=1)
    with pytest.raises(ValidationError, match="needs engine"):
        CentroidKVLLM()
    with pytest.raises(ValidationError, match="either engine"):
        CentroidKVLLM(engine=engine, store="x")


def test_traces_hold_no_engine_and_identity_is_deterministic(
    open_engine: Callable[..., Engine],
) -> None:
    llm = CentroidKVLLM(engine=open_engine(), max_tokens=3)
    other = CentroidKVLLM(engine=open_engine(), max_tokens=3)
    assert "Engine" not in repr(llm)
    assert "engine" not in llm.model_dump()
    assert llm._identifying_params == other._identifying_params
    assert CentroidKVLLM(engine=llm.kv, max_tokens=4)._identifying_params != llm._identifying_params


def test_tokens_are_counted_by_the_models_own_tokenizer(engine: Engine) -> None:
    llm = CentroidKVLLM(engine=engine)
    assert llm.get_num_tokens("four") == 4
    assert llm.get_token_ids("four") == list(
        engine.model.encode("four", chat_template=False).token_ids
    )
