"""The answer cache: LangChain's own suites, and the wrong answers it must not give."""

import json
import random
import resource
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from langchain_core.caches import BaseCache, InMemoryCache
from langchain_core.globals import set_llm_cache
from langchain_core.load import dumps
from langchain_core.messages import AIMessage, HumanMessage, SystemMessage
from langchain_core.outputs import ChatGeneration, Generation
from langchain_tests.integration_tests import AsyncCacheTestSuite, SyncCacheTestSuite

from centroidkv import Engine
from centroidkv.errors import ConfigError, StoreError
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


@pytest.mark.parametrize("kind", [CentroidKVLLM, ChatCentroidKV])
def test_the_settings_of_a_call_are_part_of_the_key(
    engine: Engine, global_cache: CentroidKVAnswerCache, kind: type
) -> None:
    model = kind(engine=engine, max_tokens=6)
    calls: list[dict[str, object]] = [{}, {"max_tokens": 3}, {"seed": 1}, {"stop": ["x"]}]
    calls += [{"temperature": 0.5}, {"top_p": 0.5}, {"tenant": "another"}]
    for call in calls:
        model.invoke("a prompt", **call)
    assert global_cache.remove(question="a prompt") == len(calls)


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


@pytest.mark.parametrize("maxsize", [1, 2, 4])
def test_the_size_is_kept_as_langchains_own_cache_keeps_it(engine: Engine, maxsize: int) -> None:
    ours, theirs = (
        CentroidKVAnswerCache(engine=engine, maxsize=maxsize),
        InMemoryCache(maxsize=maxsize),
    )
    pick = random.Random(maxsize)
    for step in range(80):
        name, value = f"p{pick.randrange(6)}", [Generation(text=f"text {step}")]
        ours.update(name, "llm", value)
        theirs.update(name, "llm", value)
        for known in (f"p{i}" for i in range(6)):
            assert ours.lookup(known, "llm") == theirs.lookup(known, "llm"), (step, known)


async def test_the_size_holds_for_async_updates_too(engine: Engine) -> None:
    cache = CentroidKVAnswerCache(engine=engine, maxsize=2)
    for name in ("a", "b", "c"):
        await cache.aupdate(name, "llm", [Generation(text=name)])
    found = [await cache.alookup(name, "llm") for name in ("a", "b", "c")]
    assert found == [None, [Generation(text="b")], [Generation(text="c")]]


def test_a_dropped_answer_is_not_served_to_its_neighbours(engine: Engine) -> None:
    near = CentroidKVAnswerCache(engine=engine, max_distance=0.9, maxsize=1)
    keep(near, "how do I block my lost card")
    keep(near, "what does a wire cost")
    assert near.lookup(prompt("how can I block my lost card"), "llm") is None


COUNTS = ("input_tokens", "output_tokens", "total_tokens")


def messages(*turns: tuple[str, object]) -> str:
    kinds = {"system": SystemMessage, "human": HumanMessage, "ai": AIMessage}
    return dumps([kinds[role](content=content) for role, content in turns])


def keep_message(cache: CentroidKVAnswerCache, asked: str) -> None:
    cache.update(asked, "llm", [ChatGeneration(message=AIMessage("the answer"))])


@pytest.mark.parametrize(
    ("asked", "again"),
    [
        ("카드를 잃어버렸어요 어떻게 하나요", "카드를 잃어버렸어요 이제 어떻게 하나요"),
        ('how do I block my "lost" card', 'how can I block my "lost" card'),
    ],
)
def test_questions_that_json_escapes_are_served_to_their_neighbours(
    near: CentroidKVAnswerCache, asked: str, again: str
) -> None:
    keep_message(near, messages(("system", "Be brief."), ("human", asked)))
    (found,) = near.lookup(messages(("system", "Be brief."), ("human", again)), "llm")
    assert found.message.response_metadata["centroidkv_cache"]["question"] == asked
    assert near.lookup(messages(("system", "Be long."), ("human", again)), "llm") is None
    more = messages(("human", "hello"), ("ai", "hello"), ("human", again))
    assert near.lookup(more, "llm") is None


def test_what_cannot_be_told_from_its_context_is_served_exactly_only(
    near: CentroidKVAnswerCache,
) -> None:
    """Near as a whole, with another context or system prompt: never an answer for this one."""
    lines = "Cards are blocked {}.\nhow do I block my lost card"
    near.update(lines.format("in the app"), "llm", [Generation(text="in the app")])
    assert near.lookup(lines.format("by phone"), "llm") is None
    assert near.lookup(lines.format("in the app"), "llm") is not None
    parts = [{"type": "text", "text": "how do I block my lost card"}]
    keep_message(near, messages(("system", "Cards are blocked in the app."), ("human", parts)))
    other = messages(("system", "Cards are blocked by phone."), ("human", parts))
    assert near.lookup(other, "llm") is None


def test_text_that_is_not_valid_unicode_is_kept_and_found(near: CentroidKVAnswerCache) -> None:
    broken = "what is \ud800 this"
    keep(near, broken)
    (found,) = near.lookup(prompt(broken), "llm")
    assert found.text == f"answer to {broken}"
    assert near.remove(question=broken) == 1


@pytest.mark.parametrize(
    "message",
    [
        AIMessage("카드 \ud800", id="run-1", usage_metadata=dict.fromkeys(COUNTS, 3)),
        AIMessage("", tool_calls=[{"name": "block", "args": {"card": [1, None]}, "id": "c1"}]),
        AIMessage([{"type": "text", "text": "a"}], response_metadata={"usage": {"ttft_s": 0.1}}),
    ],
)
def test_a_message_is_found_as_it_was_kept(near: CentroidKVAnswerCache, message: AIMessage) -> None:
    kept = [ChatGeneration(message=message, generation_info={"finish_reason": "stop"})]
    near.update(messages(("human", "a")), "llm", kept)
    assert near.lookup(messages(("human", "a")), "llm") == kept


def test_a_prompt_that_is_json_but_no_messages_is_a_text(near: CentroidKVAnswerCache) -> None:
    for text in ("[1, 2]", "{}", "[]", "null", '"a"', json.dumps([{"kwargs": 1}])):
        near.update(text, "llm", [Generation(text=f"answer to {text}")])
        assert near.lookup(text, "llm") == [Generation(text=f"answer to {text}")]


def test_a_full_disk_costs_the_answer_cache_not_the_answer(
    engine: Engine, global_cache: CentroidKVAnswerCache, caplog
) -> None:
    llm = CentroidKVLLM(engine=engine, max_tokens=6, reuse="off")
    keep(global_cache, "another question")
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (0, hard))
    try:
        answer = llm.invoke("a prompt")
        with pytest.raises(StoreError):
            global_cache.clear()
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert [r.message for r in caplog.records if "an answer is not kept" in r.message]
    assert global_cache.remove(question="a prompt") == 0
    assert llm.invoke("a prompt") == answer
    assert global_cache.remove(question="a prompt") == 1


def test_damage_is_met_on_use_and_set_aside(
    open_engine: Callable[..., Engine], tmp_path: Path
) -> None:
    with open_engine() as first:
        cache = CentroidKVAnswerCache(engine=first)
        for number in range(60):
            cache.update(f"q{number}", "llm", [Generation(text="a text " * 40)])
    path = tmp_path / "store/answers.sqlite"
    raw = path.read_bytes()
    path.write_bytes(raw[:4096] + b"\xff" * (len(raw) - 4096))
    cache = CentroidKVAnswerCache(engine=open_engine())
    assert cache.lookup("q7", "llm") is None
    keep(cache, "q")
    assert cache.lookup(prompt("q"), "llm") is not None


def test_wrong_settings_are_named(engine: Engine) -> None:
    for distance in (3, -0.1, float("nan"), "0.5", True):
        with pytest.raises(ConfigError, match="max_distance"):
            CentroidKVAnswerCache(engine=engine, max_distance=distance)
    for size in (0, -1, 2.5, "3", True):
        with pytest.raises(ConfigError, match="maxsize must be greater than 0"):
            CentroidKVAnswerCache(engine=engine, maxsize=size)
    with pytest.raises(ConfigError, match="clear takes no everything"):
        CentroidKVAnswerCache(engine=engine).clear(everything=True)
    with pytest.raises(ConfigError, match="remove"):
        CentroidKVAnswerCache(engine=engine).remove()


def test_a_read_only_store_is_refused_at_once(open_engine: Callable[..., Engine]) -> None:
    with open_engine():
        pass
    with pytest.raises(StoreError, match="read-only"):
        CentroidKVAnswerCache(engine=open_engine(read_only=True))
