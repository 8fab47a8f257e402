"""Bitwise mode of the engine: with reuse on and off, every logit of every answer is the same.

Each test counts what was reused, so that none passes by missing.
"""

from collections.abc import Callable

import pytest
import torch

from centroidkv import Completion, Engine, Message
from centroidkv.errors import ConfigError
from centroidkv.models.grid import GRID_TOKENS, GridModel
from centroidkv.models.loading import wrap_model
from centroidkv.models.transformers_model import TransformersModel
from grid_parts import NotingModel, are_same_bits
from small_parts import HashEmbedder, make_llama, make_tokenizer
from word_bank import QUESTIONS, ask, build_and_warm, search

TEXT = "".join(chr(97 + (i * i * 7 + i) % 26) for i in range(1200))
LENGTHS = [255, 256, 257, 511, 512, 513, 600, 1000]
Opening = Callable[..., Engine]


def noting(dtype: torch.dtype = torch.float32, **options: int) -> NotingModel:
    return NotingModel(wrap_model(make_llama().to(dtype), make_tokenizer(), **options))


@pytest.fixture(scope="module", params=[torch.float32, torch.bfloat16], ids=str)
def forgetful(request: pytest.FixtureRequest) -> NotingModel:
    """A model whose arenas are not taken over: what is reused comes from the store."""
    return noting(request.param, arena_budget_bytes=0)


@pytest.fixture(scope="module", params=[torch.float32, torch.bfloat16], ids=str)
def model_kept(request: pytest.FixtureRequest) -> NotingModel:
    return noting(request.param)


def logits(
    engine: Engine, prompt: str | list[Message], **options: object
) -> tuple[list[torch.Tensor], Completion]:
    """Answer as it stands, without a template where it is text; return all logits too."""
    assert isinstance(engine.model, NotingModel)
    # A question is named, or else the whole of a text would be taken for one.
    settled = {"max_tokens": 6, "chat_template": not isinstance(prompt, str), "question": "?"}
    done = engine.generate(prompt, **{**settled, **options})
    return engine.model.noted, done


@pytest.mark.parametrize("length", LENGTHS)
def test_no_bit_depends_on_where_the_prefix_was(
    open_engine: Opening, forgetful: NotingModel, length: int
) -> None:
    """Cold, from memory, from disk in a new engine, and with room for a longer answer."""
    engine = open_engine(model=forgetful, bitwise=True)
    prompt, whole = TEXT[:length], (length - 1) // GRID_TOKENS * GRID_TOKENS
    expected, bypass = logits(engine, prompt, reuse="off")
    assert bypass.usage.outcome == "bypass"
    first, miss = logits(engine, prompt)
    assert (miss.usage.reused_tokens, miss.usage.stored_tokens) == (
        0,
        length - length % GRID_TOKENS,
    )
    assert are_same_bits(first, expected)
    again, warm = logits(engine, prompt)
    assert warm.usage.reused_tokens == whole
    assert warm.usage.tier == ("memory" if whole else "none")
    assert are_same_bits(again, expected)
    longer, _ = logits(engine, prompt, max_tokens=600, stop=[warm.text])
    assert are_same_bits(longer[: len(expected)], expected)
    assert warm.margins == bypass.margins and warm.token_ids == bypass.token_ids
    engine.close()
    other = open_engine(model=forgetful, bitwise=True)
    loaded, hit = logits(other, prompt)
    assert hit.usage.reused_tokens == whole
    assert hit.usage.tier == ("disk" if whole else "none")
    assert are_same_bits(loaded, expected)
    assert other.check().is_clean


def test_no_bit_depends_on_the_arena_that_was_taken_over(
    open_engine: Opening, model_kept: NotingModel
) -> None:
    """The request before began alike; its prompt ended inside a chunk, and was answered."""
    engine = open_engine(model=model_kept, bitwise=True)
    for length, reused in ((600, 0), (620, 512), (1000, 512), (1010, 768), (700, 512)):
        found, done = logits(engine, TEXT[:length])
        assert done.usage.reused_tokens == reused
        expected, _ = logits(engine, TEXT[:length], reuse="off")
        assert are_same_bits(found, expected), length


def test_prompts_that_part_inside_a_chunk_share_the_chunks_before(
    open_engine: Opening, forgetful: NotingModel
) -> None:
    engine = open_engine(model=forgetful, bitwise=True)
    logits(engine, TEXT[:900])
    other = TEXT[:700] + TEXT[100:300]
    found, done = logits(engine, other)
    assert (done.usage.outcome, done.usage.reused_tokens) == ("partial", 512)
    assert are_same_bits(found, logits(engine, other, reuse="off")[0])


def test_only_whole_chunks_are_stored(open_engine: Opening, forgetful: NotingModel) -> None:
    engine = open_engine(model=forgetful, bitwise=True)
    logits(engine, TEXT[:255])
    assert engine.stats().num_blocks == 0
    logits(engine, TEXT[:500])
    assert engine.stats().num_blocks == GRID_TOKENS // 64
    logits(engine, TEXT[:767])
    assert engine.stats().num_blocks == 2 * GRID_TOKENS // 64


def test_a_conversation_computes_its_answers_again(
    open_engine: Opening, model_kept: NotingModel
) -> None:
    """Prompt and answer fill a chunk together, which the next turn's prompt computes as one."""
    engine = open_engine(model=model_kept, bitwise=True)
    turns = [Message("user", TEXT[:460])]
    _, first = logits(engine, turns, max_tokens=60)
    assert first.usage.prompt_tokens < 512 < first.usage.prompt_tokens + 60
    turns += [Message("assistant", first.text), Message("user", TEXT[500:600])]
    found, done = logits(engine, turns)
    assert done.usage.reused_tokens == GRID_TOKENS
    assert done.usage.stored_tokens == 256
    assert are_same_bits(found, logits(engine, turns, reuse="off")[0])
    assert engine.stats().num_blocks == 512 // 64


def test_a_warmed_cluster_is_hit_and_changes_no_bit(
    open_engine: Opening, forgetful: NotingModel
) -> None:
    engine = open_engine(model=forgetful, bitwise=True)
    build_and_warm(engine)
    again = engine.warm(lambda q: ask(engine, q))
    assert (again.filled, again.already_filled) == (0, again.num_clusters)
    stats = engine.stats()
    assert stats.num_filled_clusters == again.num_clusters
    assert stats.num_blocks == again.num_clusters * GRID_TOKENS // 64
    for question in ("please block my lost card", "does a wire to another country cost much"):
        done = ask(engine, question)
        found = forgetful.noted
        assert (done.usage.outcome, done.usage.reason) == ("hit", "pinned_prefix")
        assert done.usage.reused_tokens == GRID_TOKENS
        ask(engine, question, reuse="off")
        assert are_same_bits(found, forgetful.noted)
    assert engine.check().is_clean


def test_a_cluster_is_filled_by_its_first_miss(
    open_engine: Opening, forgetful: NotingModel
) -> None:
    engine = open_engine(model=forgetful, bitwise=True)
    engine.build(questions=QUESTIONS, retriever=search, num_clusters=3, max_pins=1, pca_dim=8)
    ask(engine, "what does a wire to another country cost")
    engine.flush()
    assert engine.stats().num_filled_clusters == 1
    assert ask(engine, "cost of a wire to another country").usage.reason == "pinned_prefix"


def test_a_prefix_shorter_than_a_chunk_is_not_warmed(
    open_engine: Opening, forgetful: NotingModel
) -> None:
    engine = open_engine(model=forgetful, bitwise=True)
    engine.build(questions=QUESTIONS, retriever=search, num_clusters=3, max_pins=1, pca_dim=8)

    def short(question: str) -> None:
        passages = engine.compose(engine.route(question), search(question)[:1])
        engine.generate(passages[0].text + question, chat_template=False, max_tokens=1)

    report = engine.warm(short)
    assert (report.filled, report.num_clusters) == (0, 3)
    assert report.problems == {"the prefix is shorter than the grid of bitwise mode": 3}


@pytest.mark.parametrize("form", ["continue", "append"])
def test_a_representatives_kv_is_taken_over_by_whole_chunks(
    open_engine: Opening, forgetful: NotingModel, form: str
) -> None:
    """Approximate is which tokens are computed; what comes out of them is the same to the bit."""
    engine = open_engine(model=forgetful, bitwise=True, preset="paper", representative_form=form)
    engine.build(questions=QUESTIONS, retriever=search, num_clusters=3, pca_dim=8)
    head = "You answer questions about the bank in one sentence. " * 10
    ask_one, ask_two = head + QUESTIONS[0], head + QUESTIONS[1]
    first, filled = logits(engine, ask_one, question=QUESTIONS[0])
    assert filled.usage.reason == "representative_filled"
    engine.flush()
    found, hit = logits(engine, ask_two, question=QUESTIONS[1])
    assert hit.usage.approximate and hit.usage.reused_tokens == 512
    both = ask_one + ask_two
    expected = first if form == "continue" else logits(engine, both, reuse="off")[0]
    assert are_same_bits(found, expected)


def test_bitwise_kv_and_other_kv_never_meet(open_engine: Opening, model: TransformersModel) -> None:
    plain, exact = open_engine(), None
    plain.generate(TEXT[:600], chat_template=False, max_tokens=1)
    plain.close()
    exact = open_engine(model=model, bitwise=True)
    assert isinstance(exact.model, GridModel)
    done = exact.generate(TEXT[:601], chat_template=False, max_tokens=1)
    assert (done.usage.reused_tokens, done.usage.reason) == (0, "other_model")
    exact.close()
    for bitwise, reused in ((True, 512), (False, 600)):
        engine = open_engine(bitwise=bitwise)
        done = engine.generate(TEXT[:602], chat_template=False, max_tokens=1)
        assert done.usage.reused_tokens == reused
        engine.close()


def test_another_number_of_threads_finds_nothing(open_engine: Opening) -> None:
    with open_engine(bitwise=True) as engine:
        engine.generate(TEXT[:600], chat_template=False, max_tokens=1)
    before = torch.get_num_threads()
    torch.set_num_threads(before + 1)
    try:
        with open_engine(bitwise=True) as engine:
            done = engine.generate(TEXT[:600], chat_template=False, max_tokens=1)
    finally:
        torch.set_num_threads(before)
    assert (done.usage.reused_tokens, done.usage.reason) == (0, "other_model")
    with open_engine(bitwise=True) as engine:
        done = engine.generate(TEXT[:600], chat_template=False, max_tokens=1)
    assert done.usage.reused_tokens == 512


def test_nothing_is_guessed(open_engine: Opening, forgetful: NotingModel) -> None:
    engine = open_engine(model=forgetful, bitwise=True)
    for _ in range(3):
        _, done = logits(engine, TEXT[:300], max_tokens=24)
        engine.flush()
        assert done.usage.drafted_tokens == 0
    assert not (engine.store.path / "drafts.sqlite").exists()


def test_a_tenants_engine_is_bitwise_too(open_engine: Opening, forgetful: NotingModel) -> None:
    engine = open_engine(model=forgetful, bitwise=True)
    logits(engine, TEXT[:600])
    tenant = engine.for_tenant("other")
    assert logits(tenant, TEXT[:600])[1].usage.reused_tokens == 0
    found, done = logits(tenant, TEXT[:600])
    assert done.usage.reused_tokens == 512
    assert are_same_bits(found, logits(engine, TEXT[:600], reuse="off")[0])


def test_a_model_that_is_not_ours_is_refused(
    open_engine: Opening, model: TransformersModel
) -> None:
    class Foreign:
        grid_tokens = 1
        fingerprint = "f"
        context_tokens = 10
        tool_format = None
        encode = count_tokens = open_sequence = HashEmbedder.embed

    with pytest.raises(ConfigError, match="bitwise=True cannot be promised for Foreign"):
        open_engine(model=Foreign(), bitwise=True)
