"""The answer cache: LangChain's own suites, and the wrong answers it must not give."""

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from langchain_core.caches import BaseCache
from langchain_core.globals import set_llm_cache
from langchain_core.outputs import Generation
from langchain_tests.integration_tests import AsyncCacheTestSuite, SyncCacheTestSuite

from centroidkv import Engine
from centroidkv.errors import ConfigError
from centroidkv.langchain import CentroidKVAnswerCache, CentroidKVLLM, ChatCentroidKV


class TestSync(SyncCacheTestSuite):
    """langchain-tests, synchronous."""

    @pytest.fixture
    def cache(self, engine: Engine) -> BaseCache:
        return CentroidKVAnswerCache(engine=engine)


class TestAsync(AsyncCacheTestSuite):
    """langchain-tests, asynchronous."""

    @pytest.fixture
    async def cache(self, engine: Engine) -> BaseCache:
        return CentroidKVAnswerCache(engine=engine)


@pytest.fixture
def near(engine: Engine) -> CentroidKVAnswerCache:
    return CentroidKVAnswerCache(engine=engine, max_distance=0.9)


def prompt(question: str, context: str = "Cards are blocked in the app.") -> str:
    return f"Answer.\n\n{context}\n\nQuestion: {question}"


def keep(cache: CentroidKVAnswerCache, text: str, llm: str = "llm") -> None:
    cache.update(prompt(text), llm, [Generation(text=f"answer to {text}")])


def test_another_wording_is_a_miss_unless_asked_for(engine: Engine) -> None:
    cache = CentroidKVAnswerCache(engine=engine)
    keep(cache, "how do I block my lost card")
    assert cache.lookup(prompt("how can I block my lost card"), "llm") is None


def test_another_wording_is_served_and_says_so(near: CentroidKVAnswerCache) -> None:
    keep(near, "how do I block my lost card")
    (found,) = near.lookup(prompt("how can I block my lost card"), "llm")
    assert found.text == "answer to how do I block my lost card"
    note = found.generation_info["centroidkv_cache"]
    assert note["calibrated"] is False and 0 < note["distance"] <= 0.9
    assert near.remove(answer_id=note["id"]) == 1
    assert near.lookup(prompt("how can I block my lost card"), "llm") is None


def test_other_settings_context_or_model_are_never_served(near: CentroidKVAnswerCache) -> None:
    keep(near, "how do I block my lost card")
    asked = "how can I block my lost card"
    assert near.lookup(prompt(asked), "another llm") is None
    assert near.lookup(prompt(asked, context="Cards are blocked by phone."), "llm") is None
    assert near.lookup(prompt("what does a wire cost"), "llm") is None


def test_a_distance_of_zero_means_zero(engine: Engine) -> None:
    cache = CentroidKVAnswerCache(engine=engine, max_distance=0)
    keep(cache, "how do I block my lost card")
    assert cache.lookup(prompt("how do I block my card"), "llm") is None
    assert cache.lookup(prompt("how do I block my lost card"), "llm") is not None


def test_a_wrong_answer_can_be_removed_by_its_question(near: CentroidKVAnswerCache) -> None:
    keep(near, "how do I block my lost card")
    assert near.remove(question="how do I block my lost card") == 1
    assert near.lookup(prompt("how do I block my lost card"), "llm") is None


def test_clear_forgets_this_tenant_alone(open_engine: Callable[..., Engine]) -> None:
    one = CentroidKVAnswerCache(engine=open_engine(tenant="one"))
    two = CentroidKVAnswerCache(engine=open_engine(tenant="two"))
    keep(one, "q")
    assert two.lookup(prompt("q"), "llm") is None
    two.clear()
    assert one.lookup(prompt("q"), "llm") is not None
    one.clear()
    assert one.lookup(prompt("q"), "llm") is None


def test_a_damaged_file_is_set_aside(open_engine: Callable[..., Engine], tmp_path: Path) -> None:
    with open_engine() as first:
        keep(CentroidKVAnswerCache(engine=first), "q")
    (tmp_path / "store/answers.sqlite").write_bytes(b"garbage" * 1000)
    cache = CentroidKVAnswerCache(engine=open_engine())
    assert cache.lookup(prompt("q"), "llm") is None
    keep(cache, "q")
    assert cache.lookup(prompt("q"), "llm") is not None


@pytest.fixture
def global_cache(near: CentroidKVAnswerCache) -> Iterator[CentroidKVAnswerCache]:
    set_llm_cache(near)
    yield near
    set_llm_cache(None)


def test_models_answer_from_it(engine: Engine, global_cache: CentroidKVAnswerCache) -> None:
    llm = CentroidKVLLM(engine=engine, max_tokens=6)
    first = llm.invoke("a prompt")
    requests = engine.stats().counters["requests"]
    assert llm.invoke("a prompt") == first
    assert engine.stats().counters["requests"] == requests
    assert CentroidKVLLM(engine=engine, max_tokens=3).invoke("a prompt") != first


def test_chat_history_and_system_prompt_are_part_of_the_key(
    engine: Engine, global_cache: CentroidKVAnswerCache
) -> None:
    chat = ChatCentroidKV(engine=engine, max_tokens=6)
    question = ("human", "how do I block my lost card")
    first = chat.invoke([question])
    again = chat.invoke([question])
    assert (again.content, again.usage_metadata is not None) == (first.content, True)
    requests = engine.stats().counters["requests"]
    chat.invoke([("system", "Be brief."), question])
    chat.invoke([("human", "hello"), ("ai", "hello"), question])
    assert engine.stats().counters["requests"] == requests + 2


def test_wrong_settings_are_named(engine: Engine) -> None:
    with pytest.raises(ConfigError, match="max_distance"):
        CentroidKVAnswerCache(engine=engine, max_distance=3)
    with pytest.raises(ConfigError, match="remove"):
        CentroidKVAnswerCache(engine=engine).remove()
