"""`accelerate` gives what an engine written by hand gives, and leaves the original as it was."""

import asyncio
import gc
import subprocess
import sys
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from llama_index.core import PromptTemplate, Settings, VectorStoreIndex, get_response_synthesizer
from llama_index.core.base.embeddings.base import BaseEmbedding
from llama_index.core.base.llms.types import LLMMetadata
from llama_index.core.callbacks import CallbackManager, CBEventType, EventPayload
from llama_index.core.callbacks.base import BaseCallbackHandler
from llama_index.core.chat_engine import (
    CondensePlusContextChatEngine,
    CondenseQuestionChatEngine,
    ContextChatEngine,
    SimpleChatEngine,
)
from llama_index.core.indices.prompt_helper import PromptHelper
from llama_index.core.llms import ChatMessage, MockLLM
from llama_index.core.memory import (
    ChatMemoryBuffer,
    ChatSummaryMemoryBuffer,
    Memory,
    StaticMemoryBlock,
    VectorMemory,
)
from llama_index.core.postprocessor import (
    LongContextReorder,
    MetadataReplacementPostProcessor,
    SimilarityPostprocessor,
)
from llama_index.core.query_engine import (
    CustomQueryEngine,
    RetrieverQueryEngine,
    RetryQueryEngine,
    RouterQueryEngine,
    TransformQueryEngine,
)
from llama_index.core.response_synthesizers import CompactAndRefine, ResponseMode
from llama_index.core.response_synthesizers.context_only import ContextOnly
from llama_index.core.response_synthesizers.no_text import NoText
from llama_index.core.storage.chat_store import SimpleChatStore, sql
from llama_index.core.tools import QueryEngineTool
from pydantic import BaseModel
from sqlalchemy.ext.asyncio import AsyncEngine, create_async_engine

import centroidkv
from centroidkv import Engine
from centroidkv.errors import ConfigError, UnsupportedChain
from centroidkv.llama_index import CentroidKVLLM, CentroidKVPostprocessor, accelerate
from centroidkv.models.transformers_model import TransformersModel
from llama_index_parts import ASKED, WordRetriever, passage_nodes
from small_parts import HashEmbedder
from word_bank import QUESTIONS

OLD_ANSWER = "text text text text text text text text"
ASKING_MODES = [
    "compact",
    "refine",
    "tree_summarize",
    "simple_summarize",
    "accumulate",
    "compact_accumulate",
]


class OldLLM(MockLLM):
    """What the user has today; its context is smaller than ours."""

    temperature: float | None = None
    window: int = 1200

    @property
    def metadata(self) -> LLMMetadata:
        return LLMMetadata(context_window=self.window, num_output=self.max_tokens or -1)


def old_llm(**options: Any) -> OldLLM:
    llm = OldLLM(max_tokens=8)
    return llm.model_copy(update=options)


def our_llm(engine: Engine) -> CentroidKVLLM:
    return CentroidKVLLM(engine=engine, max_tokens=8)


@pytest.fixture(scope="module")
def built(model: TransformersModel, tmp_path_factory: Any) -> Iterator[Engine]:
    folder = tmp_path_factory.mktemp("accelerated") / "store"
    with Engine.open(folder, model=model, embedder=HashEmbedder()) as engine:
        engine.build(
            questions=QUESTIONS, retriever=WordRetriever(), num_clusters=3, max_pins=1, pca_dim=8
        )
        yield engine


@pytest.fixture(autouse=True)
def no_global_llm(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing may ask for the LLM of the global settings: there is none."""
    monkeypatch.setattr(Settings, "_llm", None)


def retrieving(
    llm: Any, mode: str = "compact", later: list[Any] | None = None, **options: Any
) -> RetrieverQueryEngine:
    synthesizer = get_response_synthesizer(llm=llm, response_mode=ResponseMode(mode), **options)
    return RetrieverQueryEngine(
        retriever=WordRetriever(k=2), response_synthesizer=synthesizer, node_postprocessors=later
    )


def by_hand(engine: Engine, mode: str = "compact", **options: Any) -> RetrieverQueryEngine:
    later = [CentroidKVPostprocessor(engine=engine)]
    return retrieving(our_llm(engine), mode, later=later, **options)


def counted(engine: Engine, run: Callable[[], Any]) -> tuple[Any, int]:
    """Return what a run gives, and how many hits and partial hits it brought."""

    def hits() -> int:
        counters = engine.stats().counters
        return counters.get("outcome_hit", 0) + counters.get("outcome_partial", 0)

    before = hits()
    return run(), hits() - before


# query engines


@pytest.mark.parametrize("mode", ASKING_MODES)
def test_a_copy_answers_as_the_engine_written_by_hand_and_reuses(built: Engine, mode: str) -> None:
    original = retrieving(old_llm(), mode)
    parts = dict(vars(original))
    copied = accelerate(original, built)
    built.warm(copied.query)
    answer, hits = counted(built, lambda: copied.query(ASKED))
    expected = by_hand(built, mode).query(ASKED)
    assert str(answer) == str(expected) and hits >= 1
    assert [n.node_id for n in answer.source_nodes] == [n.node_id for n in expected.source_nodes]
    assert vars(original) == parts
    assert OLD_ANSWER in str(original.query(ASKED)) and OLD_ANSWER not in str(answer)


class Witness(BaseCallbackHandler):
    """Keeps the usage of every answer of ours."""

    def __init__(self) -> None:
        super().__init__([], [])
        self.usages: list[dict[str, Any]] = []

    def on_event_start(self, *_: Any, event_id: str = "", **__: Any) -> str:
        return event_id

    def on_event_end(self, event_type: Any, payload: Any = None, **_: Any) -> None:
        if event_type == CBEventType.LLM:
            self.usages.append(payload[EventPayload.RESPONSE].raw["usage"])

    def start_trace(self, trace_id: str | None = None) -> None: ...
    def end_trace(self, *_: Any, **__: Any) -> None: ...


def test_reused_tokens_are_reported_to_the_callbacks_of_the_old_model(built: Engine) -> None:
    witness = Witness()
    original = retrieving(old_llm(), callback_manager=CallbackManager([witness]))
    copied = accelerate(original, built)
    built.warm(copied.query)
    witness.usages.clear()
    copied.query(ASKED)
    (usage,) = witness.usages
    assert usage["outcome"] in ("hit", "partial") and usage["reused_tokens"] > 64


async def test_async_and_streams_go_through_the_copy(built: Engine) -> None:
    copied = accelerate(retrieving(old_llm()), built)
    assert str(await copied.aquery(ASKED)) == str(copied.query(ASKED))
    streaming = accelerate(retrieving(old_llm(), streaming=True), built)
    assert "".join(streaming.query(ASKED).response_gen) == str(copied.query(ASKED))


def test_a_synthesizer_without_context_is_swapped_too(built: Engine) -> None:
    copied = accelerate(retrieving(old_llm(), "generation"), built)
    assert str(copied.query(ASKED)) == str(by_hand(built, "generation").query(ASKED))


def test_the_front_door_knows_an_index_engine(built: Engine) -> None:
    class WordEmbedding(BaseEmbedding):
        def _get_text_embedding(self, text: str) -> list[float]:
            return HashEmbedder().embed([text])[0].tolist()

        _get_query_embedding = _get_text_embedding

        async def _aget_query_embedding(self, query: str) -> list[float]:
            return self._get_text_embedding(query)

    index = VectorStoreIndex(passage_nodes(), embed_model=WordEmbedding())
    original = index.as_query_engine(llm=old_llm(), similarity_top_k=1)
    copied = centroidkv.accelerate(original, built)
    built.warm(copied.query)
    answer, hits = counted(built, lambda: copied.query(ASKED))
    assert hits == 1 and OLD_ANSWER not in str(answer)
    with pytest.raises(UnsupportedChain, match="VectorStoreIndex") as caught:
        centroidkv.accelerate(index, built)
    assert "as_query_engine" in caught.value.instead


def test_templates_changed_in_the_copy_stay_there(built: Engine) -> None:
    original = retrieving(old_llm())
    template = original.get_prompts()["response_synthesizer:text_qa_template"]
    copied = accelerate(original, built)
    changed = PromptTemplate("{context_str} {query_str}")
    copied.update_prompts({"response_synthesizer:text_qa_template": changed})
    kept = original.get_prompts()["response_synthesizer:text_qa_template"]
    assert type(kept) is type(template)


def test_own_templates_go_along(built: Engine) -> None:
    template = PromptTemplate("From {context_str}\nsay: {query_str}")
    copied = accelerate(retrieving(old_llm(), text_qa_template=template), built)
    expected = by_hand(built, text_qa_template=template)
    assert str(copied.query(ASKED)) == str(expected.query(ASKED))


class Verdict(BaseModel):
    """A structured answer."""

    is_blocked: bool


def test_answer_filtering_and_structured_output_ask_our_model(built: Engine) -> None:
    for options in ({"structured_answer_filtering": True}, {"output_cls": Verdict}):
        original = retrieving(old_llm(), "compact", **options)
        copied, hand = accelerate(original, built), by_hand(built, "compact", **options)
        answers, hits = counted(built, lambda: outcome_of(copied))  # noqa: B023
        assert answers == outcome_of(hand) and "text text" not in answers
        assert hits >= 0


def outcome_of(engine: RetrieverQueryEngine) -> str:
    """Return the answer, or the error that a small model's unparsable answer ends in."""
    try:
        return str(engine.query(ASKED))
    except ValueError as error:
        return type(error).__name__


# the model and its settings


def llm_of(engine: RetrieverQueryEngine) -> Any:
    return engine._response_synthesizer._llm


def test_settings_of_the_old_model_go_with_it(built: Engine) -> None:
    old = old_llm(temperature=0.5, system_prompt="Be brief.", max_tokens=5)
    ours = llm_of(accelerate(retrieving(old), built))
    assert isinstance(ours, CentroidKVLLM)
    assert (ours.max_tokens, ours.temperature, ours.system_prompt) == (5, 0.5, "Be brief.")
    assert ours.callback_manager is old.callback_manager
    unset = llm_of(accelerate(retrieving(old_llm(max_tokens=None)), built))
    assert unset.max_tokens == CentroidKVLLM(engine=built).max_tokens


def test_a_setting_our_model_refuses_is_named(built: Engine) -> None:
    class Odd(OldLLM):
        top_p: float = 7.0

    with pytest.raises(UnsupportedChain, match=r"Odd.*top_p"):
        accelerate(retrieving(Odd(max_tokens=8)), built)


def test_ours_is_kept_on_the_same_engine_and_moved_to_another(
    built: Engine, open_engine: Callable[..., Engine]
) -> None:
    hand = by_hand(built)
    same = accelerate(hand, built)
    assert llm_of(same) is llm_of(hand)
    assert same._node_postprocessors == hand._node_postprocessors
    assert same._node_postprocessors is not hand._node_postprocessors
    other = open_engine()
    moved = accelerate(hand, other)
    assert llm_of(moved).kv is other and llm_of(hand).kv is built
    assert [p.engine for p in moved._node_postprocessors] == [other]
    assert [p.engine for p in hand._node_postprocessors] == [built]


def test_prompts_are_packed_for_our_context_not_for_the_old_one(built: Engine) -> None:
    small = accelerate(retrieving(old_llm(window=750), "compact"), built)
    assert str(small.query(ASKED)) == str(by_hand(built).query(ASKED))
    helper = small._response_synthesizer._prompt_helper
    assert helper.context_window == built.model.context_tokens


def test_a_prompt_helper_of_the_users_own_is_kept(built: Engine) -> None:
    own = PromptHelper(context_window=700, num_output=8, chunk_size_limit=90)
    wide = PromptHelper(context_window=1_000_000, num_output=8, chunk_size_limit=90)
    for helper, window in ((own, 700), (wide, built.model.context_tokens)):
        copied = accelerate(retrieving(old_llm(), prompt_helper=helper), built)
        ours = copied._response_synthesizer._prompt_helper
        assert (ours.context_window, ours.chunk_size_limit) == (window, 90)
        narrowed = helper.model_copy(update={"context_window": window})
        expected = by_hand(built, prompt_helper=narrowed)
        assert str(copied.query(ASKED)) == str(expected.query(ASKED))


# where the postprocessor goes


def kinds_of(engine: Any) -> list[str]:
    return [type(p).__name__ for p in engine._node_postprocessors]


def test_the_postprocessor_goes_to_the_end_or_before_the_windows(built: Engine) -> None:
    cutoff = SimilarityPostprocessor(similarity_cutoff=0.1)
    window = MetadataReplacementPostProcessor(target_metadata_key="window")
    ours, cut, replaced = (
        "CentroidKVPostprocessor",
        "SimilarityPostprocessor",
        "MetadataReplacementPostProcessor",
    )
    cases: list[tuple[list[Any], list[str]]] = [
        ([], [ours]),
        ([LongContextReorder(), cutoff], ["LongContextReorder", cut, ours]),
        ([window], [ours, replaced]),
        ([cutoff, window, cutoff], [cut, ours, replaced, cut]),
    ]
    for given, expected in cases:
        original = retrieving(old_llm(), later=given)
        before = kinds_of(original)
        assert kinds_of(accelerate(original, built)) == expected
        assert kinds_of(original) == before


def test_what_would_move_the_pins_behind_the_windows_is_named(built: Engine) -> None:
    later = [MetadataReplacementPostProcessor(target_metadata_key="window"), LongContextReorder()]
    with pytest.raises(UnsupportedChain, match="LongContextReorder") as caught:
        accelerate(retrieving(old_llm(), later=later), built)
    assert "before the MetadataReplacementPostProcessor" in caught.value.instead


def test_the_callbacks_of_the_engine_reach_the_postprocessor(built: Engine) -> None:
    original = retrieving(old_llm())
    (ours,) = accelerate(original, built)._node_postprocessors
    assert ours.callback_manager is original.callback_manager


# chat engines

HISTORY = [
    ChatMessage(role="user", content="my card"),
    ChatMessage(role="assistant", content="which one?"),
]


def buffered() -> ChatMemoryBuffer:
    return ChatMemoryBuffer.from_defaults(chat_history=list(HISTORY), token_limit=2000)


@pytest.fixture(autouse=True)
def closed_memories(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Close the databases in memory, which LlamaIndex leaves to the garbage collector."""
    opened: list[AsyncEngine] = []

    def create(*given: Any, **options: Any) -> AsyncEngine:
        opened.append(create_async_engine(*given, **options))
        return opened[-1]

    monkeypatch.setattr(sql, "create_async_engine", create)
    yield
    for database in opened:
        asyncio.run(database.dispose())
    if opened:
        gc.collect()  # event loops too, which would else be collected in the middle of another test


def remembered() -> Memory:
    return Memory.from_defaults(chat_history=list(HISTORY), token_limit=2000)


def summarised() -> ChatSummaryMemoryBuffer:
    return ChatSummaryMemoryBuffer.from_defaults(
        chat_history=list(HISTORY), llm=old_llm(), token_limit=2000
    )


def in_context(llm: Any, memory: Any, later: list[Any]) -> Any:
    return ContextChatEngine.from_defaults(
        retriever=WordRetriever(),
        llm=llm,
        memory=memory,
        system_prompt="Be kind.",
        node_postprocessors=later,
    )


def condensing(llm: Any, memory: Any, later: list[Any]) -> Any:
    return CondensePlusContextChatEngine.from_defaults(
        retriever=WordRetriever(), llm=llm, memory=memory, node_postprocessors=later
    )


def querying(llm: Any, memory: Any, later: list[Any]) -> Any:
    return CondenseQuestionChatEngine.from_defaults(
        query_engine=retrieving(llm, later=later), llm=llm, memory=memory
    )


def simple(llm: Any, memory: Any, later: list[Any]) -> Any:
    return SimpleChatEngine.from_defaults(llm=llm, memory=memory)


@pytest.mark.parametrize("memory", [buffered, remembered, summarised])
@pytest.mark.parametrize("kind", [in_context, condensing, querying, simple])
def test_a_copied_chat_engine_talks_as_one_written_by_hand(
    built: Engine, kind: Callable[..., Any], memory: Callable[[], Any]
) -> None:
    original = kind(old_llm(), memory(), [])
    copied = accelerate(original, built)
    hand = kind(our_llm(built), memory(), [CentroidKVPostprocessor(engine=built)])

    def talk(engine: Any) -> list[str]:
        return [str(engine.chat(q)) for q in (ASKED, "is my lost card blocked")]

    said, hits = counted(built, lambda: talk(copied))
    assert said == talk(hand)
    assert hits >= 1 or kind is simple  # too short to begin with a whole block
    assert contents(copied) == contents(hand)
    assert contents(original) == [m.content for m in HISTORY]
    assert OLD_ANSWER in str(original.chat(ASKED))
    assert len(contents(copied)) == len(HISTORY) + 4


def contents(engine: Any) -> list[str | None]:
    return [m.content for m in engine._memory.get_all()]


def test_a_warm_chat_engine_hits(built: Engine) -> None:
    def empty() -> Any:
        return in_context(old_llm(), ChatMemoryBuffer.from_defaults(token_limit=2000), [])

    copied = accelerate(empty(), built)
    report = built.warm(copied.chat)
    assert report.problems == {} and contents(copied) == []
    _, hits = counted(built, lambda: copied.chat(ASKED))
    assert hits == 1


async def test_a_copied_chat_engine_talks_inside_an_event_loop(built: Engine) -> None:
    copied = accelerate(in_context(old_llm(), remembered(), []), built)
    expected = accelerate(in_context(old_llm(), buffered(), []), built)
    assert str(await copied.achat(ASKED)) == str(await expected.achat(ASKED))


def test_a_query_engine_inside_a_chat_engine_is_a_copy(built: Engine) -> None:
    original = querying(old_llm(), buffered(), [])
    copied = accelerate(original, built)
    assert kinds_of(original._query_engine) == []
    assert kinds_of(copied._query_engine) == ["CentroidKVPostprocessor"]
    assert copied._llm is copied._query_engine._response_synthesizer._llm


def test_a_memory_is_as_long_as_our_context_allows(built: Engine) -> None:
    ours = built.model.context_tokens - 256

    def limit_of(memory: Any, window: int = 1200) -> int:
        llm = old_llm(window=window)
        original = SimpleChatEngine.from_defaults(llm=llm, memory=memory)
        return accelerate(original, built)._memory.token_limit

    assert limit_of(None) == limit_of(None, window=100_000) == ours
    assert limit_of(Memory.from_defaults(token_limit=500)) == 500
    assert limit_of(ChatMemoryBuffer.from_defaults(token_limit=90_000)) == ours


def test_memory_blocks_that_never_change_go_along(built: Engine) -> None:
    block = StaticMemoryBlock(static_content="The user is called Ann.")
    memory = Memory.from_defaults(token_limit=2000, memory_blocks=[block])
    copied = accelerate(simple(old_llm(), memory, []), built)
    assert copied._memory.memory_blocks == [block]


class FarStore(SimpleChatStore):
    """Stands for a store in a database."""


class WordEmbedding(BaseEmbedding):
    def _get_text_embedding(self, text: str) -> list[float]:
        return [0.0]

    _get_query_embedding = _get_text_embedding

    async def _aget_query_embedding(self, query: str) -> list[float]:
        return [0.0]


def test_memory_that_cannot_be_copied_is_named(built: Engine, tmp_path: Any) -> None:
    uri = f"sqlite+aiosqlite:///{tmp_path}/chats.db"
    cases = {
        "FarStore": ChatMemoryBuffer.from_defaults(chat_store=FarStore(), token_limit=9),
        "chats.db": Memory.from_defaults(token_limit=9, async_database_uri=uri),
        "VectorMemory": VectorMemory.from_defaults(embed_model=WordEmbedding()),
    }
    for name, memory in cases.items():
        with pytest.raises(UnsupportedChain, match=name) as caught:
            accelerate(simple(old_llm(), memory, []), built)
        assert "memory=" in caught.value.instead and "CentroidKVLLM" in caught.value.instead


# what is refused


class OwnSynthesizer(CompactAndRefine):
    """May hold anything."""


class OwnEngine(CustomQueryEngine):
    def custom_query(self, query_str: str) -> str:
        return query_str


def test_engines_that_ask_no_model_are_refused(built: Engine) -> None:
    for kind in (NoText, ContextOnly):
        engine = RetrieverQueryEngine(WordRetriever(), kind(llm=old_llm()))
        with pytest.raises(UnsupportedChain, match=f"{kind.__name__} asks no model"):
            accelerate(engine, built)


def test_engines_around_engines_are_named_with_what_to_do(built: Engine) -> None:
    inside = retrieving(old_llm())
    tool = QueryEngineTool.from_defaults(inside, name="bank", description="the bank")
    around = {
        "TransformQueryEngine": TransformQueryEngine(inside, query_transform=None),
        "RetryQueryEngine": RetryQueryEngine(inside, evaluator=None),
        "RouterQueryEngine": RouterQueryEngine.from_defaults([tool], llm=old_llm()),
    }
    for name, engine in around.items():
        with pytest.raises(UnsupportedChain, match=name) as caught:
            accelerate(engine, built)
        assert "accelerate the query engine inside it" in caught.value.instead


def test_engines_of_other_kinds_are_named_with_what_to_do(built: Engine) -> None:
    with pytest.raises(UnsupportedChain, match="OwnEngine") as caught:
        accelerate(OwnEngine(), built)
    assert "CentroidKVPostprocessor(engine=engine)" in caught.value.instead
    own = RetrieverQueryEngine(WordRetriever(), response_synthesizer=OwnSynthesizer(llm=old_llm()))
    with pytest.raises(UnsupportedChain, match="OwnSynthesizer"):
        accelerate(own, built)


def test_a_program_factory_of_the_users_own_is_named(built: Engine) -> None:
    original = retrieving(
        old_llm(), structured_answer_filtering=True, program_factory=lambda prompt: None
    )
    with pytest.raises(UnsupportedChain, match="program_factory"):
        accelerate(original, built)


def test_structured_models_are_named(built: Engine) -> None:
    structured = old_llm().as_structured_llm(Verdict)
    with pytest.raises(UnsupportedChain, match="StructuredLLM"):
        accelerate(retrieving(structured), built)


def test_other_objects_are_refused(built: Engine) -> None:
    for given in ("an engine", old_llm(), WordRetriever()):
        with pytest.raises(UnsupportedChain, match=type(given).__name__):
            accelerate(given, built)
    with pytest.raises(ConfigError, match="Engine"):
        accelerate(retrieving(old_llm()), "./store")


def test_the_package_and_one_door_import_no_other_framework() -> None:
    code = """
import sys, centroidkv
names = ("langchain_core", "llama_index", "langchain_classic")
assert not [m for m in sys.modules if m.split(".")[0] in names], "import centroidkv"
from llama_index.core.chat_engine import SimpleChatEngine
try:
    centroidkv.accelerate(SimpleChatEngine.__new__(SimpleChatEngine), None)
except centroidkv.CentroidKVError:
    pass
assert not [m for m in sys.modules if m.startswith("langchain")], "accelerate"
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-2000:]
