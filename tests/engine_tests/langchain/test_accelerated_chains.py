"""`accelerate` gives what a chain written by hand gives, and leaves the original as it was."""

from collections.abc import Callable, Iterator
from functools import partial
from operator import itemgetter
from typing import Any

import pytest
from langchain_classic.chains import create_history_aware_retriever, create_retrieval_chain
from langchain_classic.chains.combine_documents import create_stuff_documents_chain
from langchain_classic.chains.retrieval_qa.base import RetrievalQA
from langchain_classic.output_parsers import OutputFixingParser
from langchain_classic.retrievers import (
    ContextualCompressionRetriever,
    EnsembleRetriever,
    MultiQueryRetriever,
)
from langchain_classic.retrievers.document_compressors import DocumentCompressorPipeline
from langchain_core.caches import InMemoryCache
from langchain_core.callbacks import BaseCallbackHandler
from langchain_core.chat_history import InMemoryChatMessageHistory
from langchain_core.language_models import FakeListChatModel, FakeListLLM
from langchain_core.language_models.base import BaseLanguageModel
from langchain_core.messages import AIMessage, BaseMessage, HumanMessage
from langchain_core.output_parsers import StrOutputParser
from langchain_core.outputs import LLMResult
from langchain_core.prompts import ChatPromptTemplate, MessagesPlaceholder, PromptTemplate
from langchain_core.retrievers import BaseRetriever
from langchain_core.runnables import (
    ConfigurableField,
    RouterRunnable,
    Runnable,
    RunnableBranch,
    RunnableConfig,
    RunnableGenerator,
    RunnableLambda,
    RunnableParallel,
    RunnablePassthrough,
    RunnableSequence,
)
from langchain_core.runnables.history import RunnableWithMessageHistory
from langchain_core.tools import tool
from langchain_core.utils.function_calling import convert_to_openai_tool
from langgraph.graph import END, START, MessagesState, StateGraph
from pydantic import Field

import centroidkv
from centroidkv import Engine
from centroidkv.errors import ConfigError, UnsupportedChain
from centroidkv.langchain import CentroidKVLLM, CentroidKVRetriever, ChatCentroidKV, accelerate
from centroidkv.models.transformers_model import TransformersModel
from langchain_parts import ASKED, WordRetriever, joined, pinned
from small_parts import HERMES_CALLS, HashEmbedder, make_llama, make_tokenizer
from word_bank import PASSAGES, QUESTIONS

TEXT = PromptTemplate.from_template("Answer.\n\n{context}\n\nQuestion: {input}")
CHAT = ChatPromptTemplate.from_messages(
    [("system", "Answer from this.\n\n{context}"), ("human", "{input}")]
)
CONDENSE = ChatPromptTemplate.from_messages(
    [("human", "Rewrite."), MessagesPlaceholder("chat_history"), ("human", "{input}")]
)

Shape = Callable[[BaseRetriever, BaseLanguageModel], Runnable[Any, Any]]


class OldLLM(FakeListLLM):
    """What the user has today: a text model whose answers cannot be mistaken for ours."""

    responses: list[str] = Field(default_factory=lambda: ["the old answer"])
    max_tokens: int | None = 8
    temperature: float | None = None
    stop: list[str] | None = None
    seed: int | None = None


class OldChat(FakeListChatModel):
    """The same as a chat model."""

    responses: list[str] = Field(default_factory=lambda: ["the old answer"])
    max_tokens: int | None = 8
    temperature: float | None = None
    streaming: bool = False


class Witness(BaseCallbackHandler):
    """Keeps the usage of every answer of ours."""

    def __init__(self) -> None:
        self.usages: list[dict[str, Any]] = []

    def on_llm_end(self, response: LLMResult, **_: Any) -> None:
        generation = response.generations[0][0]
        message = getattr(generation, "message", None)
        info = message.response_metadata if message else generation.generation_info
        self.usages.append(info["usage"])


def context_of(retriever: Runnable[Any, Any]) -> Runnable[Any, Any]:
    return itemgetter("input") | retriever | joined


@pytest.fixture(scope="module")
def built(model: TransformersModel, tmp_path_factory: Any) -> Iterator[Engine]:
    folder = tmp_path_factory.mktemp("accelerated") / "store"
    with Engine.open(folder, model=model, embedder=HashEmbedder()) as engine:
        engine.build(
            questions=QUESTIONS, retriever=WordRetriever(), num_clusters=3, max_pins=1, pca_dim=8
        )
        yield engine


# The shapes, each a function of a retriever and a model. All take {"input": question}.


def plain(retriever: BaseRetriever, model: BaseLanguageModel) -> Runnable[Any, Any]:
    given = {"context": context_of(retriever), "input": itemgetter("input")}
    return given | TEXT | model | StrOutputParser()


def assigned(retriever: BaseRetriever, model: BaseLanguageModel) -> Runnable[Any, Any]:
    found = RunnablePassthrough.assign(found=itemgetter("input") | retriever)
    context = found.assign(context=itemgetter("found") | RunnableLambda(joined))
    return context.assign(answer=CHAT | model | StrOutputParser()).pick(["found", "answer"])


def branched(retriever: BaseRetriever, model: BaseLanguageModel) -> Runnable[Any, Any]:
    greeting = PromptTemplate.from_template("Greet: {input}") | model | StrOutputParser()
    return RunnableBranch((lambda x: x["input"] == "hello", greeting), plain(retriever, model))


def routed(retriever: BaseRetriever, model: BaseLanguageModel) -> Runnable[Any, Any]:
    bank = RouterRunnable({"bank": plain(retriever, model)})
    return {"key": lambda _: "bank", "input": RunnablePassthrough()} | bank


def mapped(retriever: BaseRetriever, model: BaseLanguageModel) -> Runnable[Any, Any]:
    return RunnableLambda(lambda x: [x]) | plain(retriever, model).map()


def stopped(retriever: BaseRetriever, model: BaseLanguageModel) -> Runnable[Any, Any]:
    ends = list("abcdefghijklm")
    return plain(retriever, model.bind(stop=ends).with_config(tags=["ends"]))


def guarded(retriever: BaseRetriever, model: BaseLanguageModel) -> Runnable[Any, Any]:
    chain = plain(retriever.with_retry(), model.with_retry(stop_after_attempt=2))
    return chain.with_config(run_name="guarded").with_types(output_type=str)


def falling_back(retriever: BaseRetriever, model: BaseLanguageModel) -> Runnable[Any, Any]:
    failing = RunnableLambda(lambda _: 1 // 0)
    return failing.with_fallbacks([plain(retriever, model)])


def alternative(retriever: BaseRetriever, model: BaseLanguageModel) -> Runnable[Any, Any]:
    which = ConfigurableField(id="which")
    chosen = model.configurable_alternatives(which, default_key="a", b=model.bind(max_tokens=3))
    return plain(retriever, chosen).with_config(configurable={"which": "b"})


def configured(retriever: BaseRetriever, model: BaseLanguageModel) -> Runnable[Any, Any]:
    limit = ConfigurableField(id="limit")
    limited = model.configurable_fields(max_tokens=limit)
    return plain(retriever, limited).with_config(configurable={"limit": 3})


def documented(retriever: BaseRetriever, model: BaseLanguageModel) -> Runnable[Any, Any]:
    return create_retrieval_chain(retriever, create_stuff_documents_chain(model, CHAT))


def conversing(retriever: BaseRetriever, model: BaseLanguageModel) -> Runnable[Any, Any]:
    past = [HumanMessage("my card"), AIMessage("which one?")]
    condensing = create_history_aware_retriever(model, retriever, CONDENSE)
    chain = create_retrieval_chain(condensing, create_stuff_documents_chain(model, CHAT))
    return RunnablePassthrough.assign(chat_history=lambda _: past) | chain


SHAPES: list[tuple[Shape, type]] = [
    (plain, OldLLM),
    (plain, OldChat),
    (assigned, OldChat),
    (branched, OldLLM),
    (routed, OldLLM),
    (mapped, OldLLM),
    (stopped, OldLLM),
    (stopped, OldChat),
    (guarded, OldLLM),
    (falling_back, OldLLM),
    (alternative, OldChat),
    (configured, OldChat),
    (documented, OldLLM),
    (documented, OldChat),
    (conversing, OldChat),
]


def said(answer: Any) -> Any:
    """Take what is said out of messages, whose ids are never equal."""
    if isinstance(answer, dict):
        return {key: said(value) for key, value in answer.items()}
    if isinstance(answer, list):
        return [said(value) for value in answer]
    return answer.content if isinstance(answer, BaseMessage) else answer


def is_old(answer: Any) -> bool:
    return "the old answer" in str(said(answer))


@pytest.mark.parametrize(
    ("shape", "old"), SHAPES, ids=[f"{s.__name__}-{m.__name__}" for s, m in SHAPES]
)
def test_a_copy_answers_as_the_chain_written_by_hand_and_reuses(
    built: Engine, shape: Shape, old: type
) -> None:
    ours = CentroidKVLLM if old is OldLLM else ChatCentroidKV
    original = shape(WordRetriever(), old())
    before = repr(original)
    copied = accelerate(original, built)
    by_hand = shape(pinned(built), ours(engine=built, max_tokens=8))
    built.warm(lambda q: copied.invoke({"input": q}))
    witness = Witness()
    answer = copied.invoke({"input": ASKED}, {"callbacks": [witness]})
    assert said(answer) == said(by_hand.invoke({"input": ASKED}))
    assert witness.usages[-1]["outcome"] in ("hit", "partial")
    assert witness.usages[-1]["reused_tokens"] > 0
    assert repr(original) == before
    assert is_old(original.invoke({"input": ASKED})) and not is_old(answer)


async def test_streams_and_async_calls_go_through_the_copy(built: Engine) -> None:
    copied = accelerate(plain(WordRetriever(), OldChat()), built)
    answer = copied.invoke({"input": ASKED})
    assert "".join(copied.stream({"input": ASKED})) == answer
    assert await copied.ainvoke({"input": ASKED}) == answer
    assert copied.batch([{"input": ASKED}]) == [answer]


def test_the_front_door_knows_a_chain(built: Engine) -> None:
    chain = plain(WordRetriever(), OldLLM())
    given = {"input": ASKED}
    assert centroidkv.accelerate(chain, built).invoke(given) == accelerate(chain, built).invoke(
        given
    )


def steps_of(chain: Runnable[Any, Any]) -> list[Runnable[Any, Any]]:
    assert isinstance(chain, RunnableSequence)
    return chain.steps


def test_what_is_neither_model_nor_retriever_is_shared(built: Engine) -> None:
    chain = plain(WordRetriever(), OldLLM())
    copied = accelerate(chain, built)
    assert [type(s) for s in steps_of(copied)[1:]] == [
        PromptTemplate,
        CentroidKVLLM,
        StrOutputParser,
    ]
    assert steps_of(copied)[1] is steps_of(chain)[1]


def test_settings_of_the_old_model_go_with_it(built: Engine) -> None:
    witness, cache = Witness(), InMemoryCache()
    old = OldLLM(
        max_tokens=5,
        temperature=0.5,
        stop=["."],
        seed=3,
        callbacks=[witness],
        tags=["bank"],
        metadata={"owner": "me"},
        cache=cache,
        verbose=True,
        name="the model",
    )
    ours = accelerate(old, built)
    assert isinstance(ours, CentroidKVLLM)
    assert (ours.max_tokens, ours.temperature, ours.stop, ours.seed) == (5, 0.5, ["."], 3)
    assert (ours.callbacks, ours.tags, ours.cache) == ([witness], ["bank"], cache)
    assert ours.metadata is not None and ours.metadata["owner"] == "me"
    assert (ours.verbose, ours.name) == (True, "the model")
    assert ours.tags is not old.tags and ours.metadata is not old.metadata
    chat = accelerate(OldChat(streaming=True, output_version="v1"), built)
    assert isinstance(chat, ChatCentroidKV)
    assert chat.streaming and chat.output_version == "v1"


def test_settings_that_are_not_set_keep_our_defaults(built: Engine) -> None:
    ours = accelerate(OldLLM(max_tokens=None), built)
    assert isinstance(ours, CentroidKVLLM)
    fresh = CentroidKVLLM(engine=built)
    assert (ours.max_tokens, ours.temperature) == (fresh.max_tokens, fresh.temperature)
    unlimited = accelerate(OldLLM(max_tokens=-1), built)
    assert isinstance(unlimited, CentroidKVLLM) and unlimited.max_tokens == fresh.max_tokens


class PipelineLLM(OldLLM):
    max_new_tokens: int = 4


def test_the_other_name_of_max_tokens_is_known(built: Engine) -> None:
    ours = accelerate(PipelineLLM(max_tokens=None), built)
    assert isinstance(ours, CentroidKVLLM) and ours.max_tokens == 4


def test_a_setting_our_model_refuses_is_named(built: Engine) -> None:
    class Odd(OldLLM):
        top_p: str = "most"

    with pytest.raises(UnsupportedChain, match=r"Odd.*top_p"):
        accelerate(Odd(), built)


def test_streaming_callbacks_of_the_old_model_see_tokens(built: Engine) -> None:
    class Tokens(BaseCallbackHandler):
        def __init__(self) -> None:
            self.seen: list[str] = []

        def on_llm_new_token(self, token: str, **_: Any) -> None:
            self.seen.append(token)

    tokens = Tokens()
    chat = accelerate(OldChat(streaming=True, callbacks=[tokens]), built)
    answer = chat.invoke("hello")
    assert "".join(tokens.seen) == answer.content and len(tokens.seen) > 1


def test_names_and_tags_of_the_old_retriever_go_with_it(built: Engine) -> None:
    base = WordRetriever(name="bank", tags=["search"], metadata={"owner": "me"})
    copied = accelerate(context_of(base) | TEXT.partial(input="?") | OldLLM(), built)
    ours = steps_of(copied)[1]
    assert isinstance(ours, CentroidKVRetriever) and ours.base is base
    assert (ours.name, ours.tags, ours.metadata) == ("bank", ["search"], {"owner": "me"})


class FirstOnly(DocumentCompressorPipeline):
    def compress_documents(self, documents, query, callbacks=None):
        return documents[:1]


def compressing() -> BaseRetriever:
    return ContextualCompressionRetriever(
        base_compressor=FirstOnly(transformers=[]), base_retriever=WordRetriever(k=3)
    )


def asking_often() -> BaseRetriever:
    llm = OldLLM(responses=["lost card\nblock a card"])
    return MultiQueryRetriever.from_llm(retriever=WordRetriever(), llm=llm)


def together() -> BaseRetriever:
    return EnsembleRetriever(retrievers=[WordRetriever(), WordRetriever(k=2)], weights=[0.5, 0.5])


@pytest.mark.parametrize("outer", [compressing, asking_often, together])
def test_a_retriever_around_retrievers_is_wrapped_as_a_whole(
    built: Engine, outer: Callable[[], BaseRetriever]
) -> None:
    copied = accelerate(plain(outer(), OldLLM()), built)
    by_hand = plain(pinned(built, outer()), CentroidKVLLM(engine=built, max_tokens=8))
    built.warm(lambda q: copied.invoke({"input": q}))
    witness = Witness()
    answer = copied.invoke({"input": ASKED}, {"callbacks": [witness]})
    assert answer == by_hand.invoke({"input": ASKED})
    assert witness.usages[-1]["reused_tokens"] > 0


def test_ours_are_kept_on_the_same_engine_and_moved_to_another(
    built: Engine, open_engine: Callable[..., Engine]
) -> None:
    retriever, llm = pinned(built), CentroidKVLLM(engine=built, max_tokens=3)
    chain = retriever | joined | TEXT.partial(input="?") | llm
    same = steps_of(accelerate(chain, built))
    assert same[0] is retriever and same[-1] is llm
    other = open_engine()
    moved = steps_of(accelerate(chain, other))
    assert isinstance(moved[0], CentroidKVRetriever) and moved[0].engine is other
    assert isinstance(moved[0].base, WordRetriever)
    assert isinstance(moved[-1], CentroidKVLLM) and moved[-1].kv is other
    assert (moved[-1].max_tokens, retriever.engine, llm.kv) == (3, built, built)


def test_a_copy_of_a_copy_has_nothing_twice(built: Engine) -> None:
    once = accelerate(plain(WordRetriever(), OldLLM()), built)
    twice = accelerate(once, built)
    retriever = steps_of(steps_of(twice)[0].steps__["context"])[1]
    assert isinstance(retriever, CentroidKVRetriever)
    assert isinstance(retriever.base, WordRetriever)
    assert twice.invoke({"input": ASKED}) == once.invoke({"input": ASKED})


def test_a_wrapper_inside_a_retriever_is_named(built: Engine) -> None:
    outer = EnsembleRetriever(retrievers=[pinned(built)], weights=[1.0])
    with pytest.raises(UnsupportedChain, match="EnsembleRetriever holds a CentroidKVRetriever"):
        accelerate(plain(outer, OldLLM()), built)


def test_a_model_that_opened_its_own_engine_is_moved(
    built: Engine, open_engine: Callable[..., Engine], model: TransformersModel
) -> None:
    own = ChatCentroidKV.model_construct(
        engine=open_engine(), model="mine", store="there", max_tokens=2
    )
    moved = accelerate(own, built)
    assert isinstance(moved, ChatCentroidKV)
    assert (moved.kv, moved.model, moved.store, own.model) == (built, None, None, "mine")


def test_one_retriever_at_two_places_stays_one(built: Engine) -> None:
    retriever = WordRetriever()
    both = RunnableParallel(found=itemgetter("input") | retriever, context=context_of(retriever))
    copied = accelerate(both.assign(input=lambda _: "?") | TEXT | OldLLM(), built)
    parallel = steps_of(copied)[0]
    assert isinstance(parallel, RunnableParallel)
    ours = [s for key in ("found", "context") for s in steps_of(parallel.steps__[key])]
    assert len({id(s) for s in ours if isinstance(s, CentroidKVRetriever)}) == 1


def test_a_retriever_wrapped_by_hand_leaves_the_others_alone(built: Engine) -> None:
    examples = WordRetriever(k=2)
    both = RunnableParallel(context=pinned(built), input=examples)
    parallel = steps_of(accelerate(both | TEXT | OldLLM(), built))[0]
    assert isinstance(parallel, RunnableParallel) and parallel.steps__["input"] is examples


def test_two_retrievers_in_one_prompt_are_refused_by_name(built: Engine) -> None:
    both = RunnableParallel(context=WordRetriever(), input=WordRetriever(name="examples"))
    with pytest.raises(UnsupportedChain, match=r"WordRetriever.*examples.*by hand") as caught:
        accelerate(both | TEXT | OldLLM(), built)
    assert "CentroidKVRetriever(engine=engine, base=...)" in caught.value.instead


def test_of_two_retrievers_only_one_of_which_runs_both_are_pinned(built: Engine) -> None:
    first, second = WordRetriever(k=1), WordRetriever(k=2)
    chain = plain(first.with_fallbacks([second]), OldLLM())
    inside = steps_of(accelerate(chain, built))[0].steps__["context"].steps[1]
    assert [r.base for r in (inside.runnable, *inside.fallbacks)] == [first, second]


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_a_chain_with_message_history_keeps_a_conversation(built: Engine) -> None:
    prompt = ChatPromptTemplate.from_messages(
        [
            ("system", "Answer from this.\n\n{context}"),
            MessagesPlaceholder("chat_history"),
            ("human", "{input}"),
        ]
    )

    def with_history(retriever: BaseRetriever, model: BaseLanguageModel) -> Any:
        sessions: dict[str, InMemoryChatMessageHistory] = {}
        chain = RunnablePassthrough.assign(context=context_of(retriever)) | prompt | model
        return sessions, RunnableWithMessageHistory(
            chain,
            lambda session_id: sessions.setdefault(session_id, InMemoryChatMessageHistory()),
            input_messages_key="input",
            history_messages_key="chat_history",
        ).with_config(configurable={"session_id": "me"})

    def talk(chain: Runnable[Any, Any], witness: Witness) -> list[Any]:
        asked = (ASKED, "is my lost card blocked")
        return [said(chain.invoke({"input": q}, {"callbacks": [witness]})) for q in asked]

    old_sessions, original = with_history(WordRetriever(), OldChat())
    copied = accelerate(original, built)
    sessions, by_hand = with_history(pinned(built), ChatCentroidKV(engine=built, max_tokens=8))
    built.warm(lambda q: copied.invoke({"input": q}, {"configurable": {"session_id": "new"}}))
    assert "me" not in old_sessions
    witness = Witness()
    assert talk(copied, witness) == talk(by_hand, Witness())
    assert [u["reused_tokens"] > 0 for u in witness.usages] == [True, True]
    said_there = [m.content for m in old_sessions["me"].messages]
    assert said_there == [m.content for m in sessions["me"].messages]
    assert is_old(original.invoke({"input": "?"}))


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_a_history_around_a_bound_model_keeps_what_is_bound(built: Engine) -> None:
    sessions: dict[str, InMemoryChatMessageHistory] = {}
    history = RunnableWithMessageHistory(
        OldChat().bind(max_tokens=3),
        lambda session_id: sessions.setdefault(session_id, InMemoryChatMessageHistory()),
    )
    copied = accelerate(history, built)
    config = RunnableConfig(configurable={"session_id": "a"})
    by_hand = ChatCentroidKV(engine=built, max_tokens=3)
    assert said(copied.invoke([HumanMessage("hello")], config)) == said(by_hand.invoke("hello"))
    assert len(sessions["a"].messages) == 2


# What is refused, and what the message says.


@pytest.mark.parametrize("bound", [{"response_format": {"type": "json"}}, {"max_new_tokens": 3}])
@pytest.mark.parametrize("guard", [lambda m: m, lambda m: m.with_retry()])
def test_bound_arguments_our_models_do_not_know_are_named(
    built: Engine, bound: dict[str, Any], guard: Callable[[Any], Any]
) -> None:
    bindings = [guard(OldLLM().bind(**bound)), guard(OldLLM()).bind(**bound)]
    for binding in bindings:
        with pytest.raises(UnsupportedChain, match=next(iter(bound))) as caught:
            accelerate(TEXT | binding, built)
        assert "max_tokens" in str(caught.value)


@tool
def block_card(card: str) -> str:
    """Block a bank card."""
    return f"{card} card blocked"


def test_bound_tools_go_to_a_model_whose_template_knows_them(built: Engine, tmp_path) -> None:
    schema = convert_to_openai_tool(block_card)["function"]
    anthropic = {
        "name": schema["name"],
        "description": schema["description"],
        "input_schema": schema["parameters"],
    }
    original = OldChat().bind(tools=[anthropic], tool_choice="any", stop=["~"])
    with pytest.raises(UnsupportedChain, match="tools"):
        accelerate(TEXT | original, built)
    tokenizer = make_tokenizer()
    tokenizer.chat_template = HERMES_CALLS
    folder, llama = tmp_path / "store", make_llama()
    with Engine.open(folder, model=llama, tokenizer=tokenizer, embedder=HashEmbedder()) as engine:
        copied = accelerate(original, engine)
        ours = ChatCentroidKV(engine=engine, max_tokens=8)
        hand = ours.bind_tools([block_card], tool_choice="any").bind(stop=["~"])
        answer, expected = copied.invoke("block my card"), hand.invoke("block my card")
    assert said(answer) == said(expected)
    assert answer.invalid_tool_calls == expected.invalid_tool_calls


def test_arguments_bound_to_other_steps_are_no_concern(built: Engine) -> None:
    searching = WordRetriever().bind(anything=1)
    copied = accelerate(plain(searching, OldLLM()), built)
    assert not is_old(copied.invoke({"input": ASKED}))


RETRIEVER = WordRetriever()
MODEL = OldLLM()


def search(question: dict[str, str]) -> str:
    return joined(RETRIEVER.invoke(question["input"]))


def searching(question: dict[str, str]) -> str:
    return search(question)


class Service:
    def __init__(self) -> None:
        self.llm = OldLLM()
        self.retriever = WordRetriever()

    def find(self, question: dict[str, str]) -> str:
        return joined(self.retriever.invoke(question["input"]))

    def describe(self, question: dict[str, str]) -> str:
        return str(question)


class Caller:
    def __init__(self, retriever: BaseRetriever) -> None:
        self.retriever = retriever

    def __call__(self, question: dict[str, str]) -> str:
        return joined(self.retriever.invoke(question["input"]))


def streaming_search(questions: Iterator[Any]) -> Iterator[str]:
    for question in questions:
        yield search(question)


def enclosed(retriever: BaseRetriever) -> Callable[[dict[str, str]], str]:
    def nested(question: dict[str, str]) -> str:
        return "".join(d.page_content for q in [question] for d in retriever.invoke(q["input"]))

    return nested


SERVICE = Service()
HIDDEN_RETRIEVERS: dict[str, Any] = {
    "closure": enclosed(WordRetriever()),
    "global": search,
    "helper": searching,
    "method": Service().find,
    "attribute": lambda x: joined(SERVICE.retriever.invoke(x["input"])),
    "partial": partial(lambda r, x: joined(r.invoke(x["input"])), WordRetriever()),
    "callable": Caller(WordRetriever()),
    "generator": RunnableGenerator(streaming_search),
    "returned": lambda _: itemgetter("input") | RETRIEVER | joined,
}


@pytest.mark.parametrize("kind", HIDDEN_RETRIEVERS)
def test_a_function_that_asks_a_retriever_is_named(built: Engine, kind: str) -> None:
    chain = RunnablePassthrough.assign(context=HIDDEN_RETRIEVERS[kind]) | TEXT | OldLLM()
    with pytest.raises(UnsupportedChain, match="WordRetriever") as caught:
        accelerate(chain, built)
    assert "test_accelerated_chains.py" in caught.value.part or "Runnable" in caught.value.part
    assert "| retriever |" in caught.value.instead
    assert "CentroidKVRetriever(engine=engine, base=...)" in caught.value.instead


def test_a_function_that_asks_a_model_is_named(built: Engine) -> None:
    def rewrite(question: dict[str, str]) -> str:
        return MODEL.invoke(question["input"])

    chain = RunnablePassthrough.assign(context=rewrite) | TEXT | OldLLM()
    with pytest.raises(UnsupportedChain, match=r"rewrite.*OldLLM") as caught:
        accelerate(chain, built)
    assert "CentroidKVLLM(engine=engine)" in caught.value.instead


def test_functions_that_ask_nobody_are_leaves(built: Engine) -> None:
    functions = [
        Service().describe,
        lambda x: str(PASSAGES) + joined([]),
        itemgetter("input"),
        partial(str.replace, "a"),
    ]
    for function in functions:
        step = RunnableLambda(function)
        copied = accelerate(step | RunnablePassthrough(print) | OldLLM(), built)
        assert steps_of(copied)[0] is step


def test_a_function_that_asks_ours_is_a_leaf(
    built: Engine, open_engine: Callable[..., Engine]
) -> None:
    retriever, model = pinned(built), CentroidKVLLM(engine=built)
    find = RunnableLambda(lambda x: [retriever.invoke(x), model.invoke(x)])
    chain = find | StrOutputParser() | OldLLM()
    assert steps_of(accelerate(chain, built))[0] is find
    with pytest.raises(UnsupportedChain, match="CentroidKV"):
        accelerate(chain, open_engine())


def test_a_parser_that_asks_a_model_is_named(built: Engine) -> None:
    parser = OutputFixingParser.from_llm(llm=OldLLM(), parser=StrOutputParser())
    with pytest.raises(UnsupportedChain, match=r"OutputFixingParser.*OldLLM"):
        accelerate(TEXT | OldLLM() | parser, built)


def test_a_chain_without_a_model_is_refused(built: Engine) -> None:
    with pytest.raises(UnsupportedChain, match=r"no model.*PromptTemplate"):
        accelerate(context_of(WordRetriever()) | TEXT.partial(input="?"), built)
    with pytest.raises(UnsupportedChain, match=r"WordRetriever") as caught:
        accelerate(WordRetriever(), built)
    assert "CentroidKVRetriever(engine=engine, base=...)" in caught.value.instead


def test_a_model_without_a_retriever_is_fine(built: Engine) -> None:
    chain = PromptTemplate.from_template("Say {x}") | OldLLM()
    by_hand = PromptTemplate.from_template("Say {x}") | CentroidKVLLM(engine=built, max_tokens=8)
    assert accelerate(chain, built).invoke({"x": "hi"}) == by_hand.invoke({"x": "hi"})


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_legacy_chains_are_refused_with_what_to_do(built: Engine) -> None:
    legacy = RetrievalQA.from_chain_type(OldLLM(), retriever=WordRetriever())
    for chain in (legacy, legacy | itemgetter("result")):
        with pytest.raises(UnsupportedChain, match="RetrievalQA") as caught:
            accelerate(chain, built)
        assert "create_retrieval_chain" in caught.value.instead
        assert "CentroidKVRetriever(engine=engine, base=...)" in caught.value.instead


def test_graphs_are_refused_with_what_to_do(built: Engine) -> None:
    graph = StateGraph(MessagesState)
    graph.add_node("answer", lambda state: {"messages": [OldChat().invoke(state["messages"])]})
    graph.add_edge(START, "answer")
    graph.add_edge("answer", END)
    for given in (graph, graph.compile(), graph.compile() | itemgetter("messages")):
        for door in (centroidkv.accelerate, accelerate):
            with pytest.raises(UnsupportedChain, match="StateGraph") as caught:
                door(given, built)
            assert "accelerate each chain" in caught.value.instead


def test_configurable_fields_our_model_does_not_have_are_named(built: Engine) -> None:
    sleepy = OldLLM().configurable_fields(sleep=ConfigurableField(id="sleep"))
    with pytest.raises(UnsupportedChain, match="sleep"):
        accelerate(TEXT | sleepy, built)
    ours = CentroidKVLLM(engine=built).configurable_fields(reuse=ConfigurableField(id="reuse"))
    assert steps_of(accelerate(TEXT | ours, built))[1].default is ours.default
    searching = WordRetriever().configurable_fields(k=ConfigurableField(id="k"))
    with pytest.raises(UnsupportedChain, match="WordRetriever"):
        accelerate(searching | joined | OldLLM(), built)
    prompt = TEXT.configurable_fields(template=ConfigurableField(id="template"))
    assert steps_of(accelerate(prompt | OldLLM(), built))[0] is prompt


def test_an_alternative_made_by_a_function_is_named(built: Engine) -> None:
    which = ConfigurableField(id="which")
    lazy = OldLLM().configurable_alternatives(which, other=lambda: OldLLM())
    with pytest.raises(UnsupportedChain, match="other"):
        accelerate(TEXT | lazy, built)


def test_other_objects_are_refused(built: Engine) -> None:
    for given in ("a chain", lambda x: x, {"context": WordRetriever()}):
        with pytest.raises(UnsupportedChain, match=type(given).__name__):
            centroidkv.accelerate(given, built)
        with pytest.raises(UnsupportedChain, match=type(given).__name__):
            accelerate(given, built)
    with pytest.raises(ConfigError, match="engine"):
        accelerate(TEXT | OldLLM(), "./store")
