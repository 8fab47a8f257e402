"""Golden tests of the engine on a random model: reuse changes the time, never the answer."""

import asyncio
import os
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from centroidkv import Engine, Message, Passage
from centroidkv.errors import ConfigError, ContextTooLong
from centroidkv.models.detokenizing import kept_arenas
from centroidkv.models.transformers_model import TransformersModel
from small_parts import HashEmbedder, make_llama, make_tokenizer
from word_bank import QUESTIONS, ask, build_and_warm, search


def test_an_unseen_question_hits_and_answers_as_without_reuse(engine: Engine) -> None:
    build_and_warm(engine)
    for question in ("please block my lost card", "does a wire to another country cost much"):
        warm = ask(engine, question)
        cold = ask(engine, question, reuse="off")
        assert warm.token_ids == cold.token_ids
        assert warm.usage.outcome == "hit", warm.usage
        assert warm.usage.reason == "pinned_prefix"
        assert warm.usage.reused_tokens > 200
        assert cold.usage.outcome == "bypass" and cold.usage.reused_tokens == 0
    assert engine.stats().counters["outcome_hit"] == 2
    assert engine.check().is_clean


def test_a_new_engine_finds_what_an_earlier_one_stored(open_engine: Callable[..., Engine]) -> None:
    with open_engine() as first:
        build_and_warm(first)
    second = open_engine()
    done = ask(second, "please block my lost card")
    # The prefetch may have brought it into memory before the model was asked.
    assert done.usage.outcome == "hit"
    assert done.usage.tier in ("disk", "memory")
    assert done.token_ids == ask(second, "please block my lost card", reuse="off").token_ids


def test_warming_again_changes_nothing(engine: Engine) -> None:
    build_and_warm(engine)
    blocks = engine.stats().num_blocks
    again = engine.warm(lambda q: ask(engine, q))
    assert (again.filled, again.already_filled) == (0, again.num_clusters)
    assert engine.stats().num_blocks == blocks


def test_building_again_keeps_the_plan_and_its_kv(engine: Engine) -> None:
    build_and_warm(engine)
    again = engine.build(
        questions=QUESTIONS, retriever=search, num_clusters=3, max_pins=1, pca_dim=8
    )
    assert not again.is_new
    assert ask(engine, "please block my lost card").usage.outcome == "hit"


def test_a_miss_fills_the_store_for_its_paraphrase(open_engine: Callable[..., Engine]) -> None:
    with open_engine() as first:
        missed = ask(first, "how do I block a lost card")
        assert (missed.usage.outcome, missed.usage.reason) == ("miss", "empty_store")
        assert missed.usage.stored_tokens == missed.usage.prompt_tokens
    second = open_engine()
    done = ask(second, "how can I block a lost card")
    assert done.usage.outcome == "hit", done.usage
    assert done.token_ids == ask(second, "how can I block a lost card", reuse="off").token_ids


def test_an_admitted_cluster_without_kv_is_filled_by_its_first_miss(engine: Engine) -> None:
    engine.build(questions=QUESTIONS, retriever=search, num_clusters=3, max_pins=1, pca_dim=8)
    ask(engine, "what does a wire to another country cost")
    missed = ask(engine, "my card is lost what now")
    assert (missed.usage.outcome, missed.usage.reason) == ("miss", "cluster_not_filled")
    engine.flush()
    assert engine.stats().num_filled_clusters == 2
    assert ask(engine, "lost card please block it").usage.outcome == "hit"


def test_three_near_misses_make_a_cluster(engine: Engine) -> None:
    build_and_warm(engine)
    before = engine.stats().num_clusters
    for question in ("is the branch open on sunday", "on sunday is the branch open"):
        assert ask(engine, question).usage.cluster is None
    engine.flush()
    assert engine.stats().num_clusters == before
    ask(engine, "the branch is open on sunday")
    engine.flush()
    assert engine.stats().num_clusters == before + 1
    assert ask(engine, "sunday is the branch open").usage.cluster == before


def test_a_first_plan_is_fitted_from_the_questions_seen(
    open_engine: Callable[..., Engine],
) -> None:
    engine = open_engine(fit_after=len(QUESTIONS))
    for question in QUESTIONS:
        ask(engine, question)
    engine.flush()
    plan = engine.router.plan
    assert plan is not None and not plan.is_online and not plan.projection.is_identity


def test_the_question_is_found_through_the_record(engine: Engine) -> None:
    build_and_warm(engine)
    done = ask(engine, "please block my lost card")
    assert done.usage.cluster is not None and done.usage.distance is not None


def test_a_question_before_its_context_says_so(engine: Engine, caplog) -> None:
    engine.generate("fill the store with something else", max_tokens=1)
    question = "how do I block a lost card"
    for _ in range(2):
        passages = engine.compose(engine.route(question), search(question))
        prompt = f"Question: {question}\n\n" + "\n\n".join(p.text for p in passages)
        done = engine.generate(prompt, max_tokens=2)
        question = "lost card please block it"
    assert (done.usage.outcome, done.usage.reason) == ("miss", "question_before_context")
    warned = [r for r in caplog.records if "question before the passages" in r.message]
    assert len(warned) == 1


def test_the_head_alone_is_a_miss(engine: Engine) -> None:
    head = "You answer questions of customers of a bank, politely and in one sentence. " * 3
    for passage in ("One passage about cards.", "Another passage about loans."):
        found = [Passage.of(passage)]
        engine.compose(engine.route(passage), found)
        done = engine.generate(f"{head}\n\n{passage}\n\nQuestion: {passage}", max_tokens=2)
    assert done.usage.reused_tokens > 200
    assert done.usage.outcome == "miss"


def test_whole_pins_are_dropped_when_the_prompt_is_too_long(
    open_engine: Callable[..., Engine],
) -> None:
    from centroidkv.models.loading import wrap_model

    small = wrap_model(make_llama(positions=450), make_tokenizer())
    engine = open_engine(model=small, pins_by="nearest")
    engine.build(questions=QUESTIONS, retriever=search, num_clusters=1, max_pins=3, pca_dim=8)
    done = ask(engine, "please block my lost card")
    assert done.usage.dropped_pins == 2
    assert done.usage.prompt_tokens < 450
    with pytest.raises(ContextTooLong, match="450"):
        engine.generate("x" * 700)


def test_an_answer_ends_at_the_context(open_engine: Callable[..., Engine]) -> None:
    from centroidkv.models.loading import wrap_model

    engine = open_engine(model=wrap_model(make_llama(positions=64), make_tokenizer()))
    done = engine.generate("x" * 50, max_tokens=500)
    assert done.usage.prompt_tokens + done.usage.completion_tokens <= 64


def test_another_model_meets_nothing_of_the_first(open_engine: Callable[..., Engine]) -> None:
    from centroidkv.models.loading import wrap_model

    with open_engine() as first:
        build_and_warm(first)
    other = wrap_model(make_llama(seed=1), make_tokenizer())
    with open_engine(model=other) as second:
        done = ask(second, "please block my lost card")
        assert (done.usage.outcome, done.usage.reason) == ("miss", "other_model")
        assert done.usage.cluster is not None, "a new model keeps the clusters"
        assert ask(second, "my card is lost please block it").usage.outcome == "hit"


def test_another_tenant_meets_nothing_of_the_first(open_engine: Callable[..., Engine]) -> None:
    with open_engine(tenant="one") as first:
        build_and_warm(first)
        assert ask(first, "please block my lost card").usage.outcome == "hit"
    with open_engine(tenant="two") as second:
        done = ask(second, "please block my lost card")
        assert done.usage.reused_tokens == 0 and done.usage.cluster is None


def test_another_embedder_is_told_that_the_plan_is_not_its_own(
    open_engine: Callable[..., Engine], caplog
) -> None:
    with open_engine() as first:
        build_and_warm(first)
    other = HashEmbedder()
    other.fingerprint = "f" * 64  # type: ignore[misc]
    second = open_engine(embedder=other)
    assert second.route("please block my lost card").cluster is None
    assert "another embedder" in caplog.text


def test_a_closed_stream_stops_decoding_and_frees_its_arena(engine: Engine) -> None:
    stream = engine.stream("tell me everything", max_tokens=2000)
    next(stream)
    stream.close()
    assert engine.generate("tell me everything", max_tokens=3).usage.completion_tokens == 3


def test_streaming_gives_the_same_text_as_generating(engine: Engine) -> None:
    chunks = list(engine.stream("a prompt", max_tokens=20))
    assert "".join(c.text for c in chunks) == chunks[-1].completion.text
    assert chunks[-1].completion.text == engine.generate("a prompt", max_tokens=20).text


def test_a_stop_string_ends_the_answer(engine: Engine) -> None:
    full = engine.generate("a prompt", max_tokens=30, reuse="off").text
    stop = full[8:10]
    cut = engine.generate("a prompt", max_tokens=30, stop=[stop])
    assert cut.text == full[: full.index(stop)]
    assert cut.finish_reason == "stop"


def test_sampling_with_a_seed_repeats(engine: Engine) -> None:
    one, two, other = (
        engine.generate("a prompt", max_tokens=12, temperature=1.5, top_p=0.9, seed=s).token_ids
        for s in (7, 7, 8)
    )
    assert one == two != other


def test_messages_are_rendered_by_the_template_with_the_same_ids(engine: Engine) -> None:
    turns = [Message("system", "Be brief."), Message("user", "Hello")]
    given = [{"role": m.role, "content": m.content} for m in turns]
    expected = engine.model.tokenizer.apply_chat_template(
        given, add_generation_prompt=True, return_dict=True
    )["input_ids"]
    assert list(engine.model.encode(turns).token_ids) == list(expected)
    assert engine.generate(given, max_tokens=4).usage.prompt_tokens == len(expected)


@pytest.mark.parametrize("text", ["lone \ud800 surrogate", "한국어 질문", "emoji 🏦", "\x00"])
def test_odd_text_is_answered(engine: Engine, text: str) -> None:
    passages = engine.compose(engine.route(text), [Passage.of(text * 3)])
    done = engine.generate(f"{passages[0].text}\n\nQuestion: {text}", max_tokens=3)
    assert done.usage.completion_tokens == 3
    engine.flush()
    assert engine.stats().failed_writes == 0


def test_a_policy_that_is_not_known_is_a_typed_error(engine: Engine) -> None:
    with pytest.raises(ConfigError, match="blend"):
        engine.generate("x", reuse="fuzzy")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"max_tokens": 0}, "max_tokens"),
        ({"max_tokens": -1}, "max_tokens"),
        ({"temperature": -0.1}, "temperature"),
        ({"top_p": 0.0}, "top_p"),
        ({"stop": [""]}, "stop"),
        ({"reuse": "sometimes"}, "sometimes"),
        ({"max_token": 3}, "max_token"),
    ],
)
def test_wrong_arguments_name_themselves(engine: Engine, options, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        engine.generate("x", **options)


def test_an_empty_prompt_and_a_closed_engine_are_named(engine: Engine) -> None:
    with pytest.raises(ConfigError, match="empty"):
        engine.generate("")
    engine.close()
    with pytest.raises(ConfigError, match="closed"):
        engine.generate("x")
    with pytest.raises(ConfigError, match="closed"):
        engine.route("x")


def test_build_names_what_is_wrong(engine: Engine) -> None:
    with pytest.raises(ConfigError, match="no questions"):
        engine.build(questions=["", "  "], retriever=search)
    with pytest.raises(ConfigError, match="not a retriever"):
        engine.build(questions=["x"], retriever=3)
    with pytest.raises(ConfigError, match="unknown setting clusters"):
        engine.build(questions=["x"], retriever=search, clusters=3)
    with pytest.raises(ConfigError, match="call build"):
        engine.warm(lambda q: q)


def test_warming_reports_a_chain_that_never_shows_the_pins(engine: Engine) -> None:
    engine.build(questions=QUESTIONS, retriever=search, num_clusters=3, max_pins=1, pca_dim=8)
    report = engine.warm(lambda q: engine.generate(q, max_tokens=1))
    assert report.filled == 0
    assert any("no prompt held the pinned passages" in p for p in report.problems)
    assert engine.stats().num_filled_clusters == 0


def test_a_chain_that_raises_leaves_the_other_clusters(engine: Engine) -> None:
    engine.build(questions=QUESTIONS, retriever=search, num_clusters=3, max_pins=1, pca_dim=8)
    unlucky = engine.router.plan.clusters[0].members

    def chain(question: str):
        if question in unlucky:
            raise RuntimeError("the user's parser broke")
        return ask(engine, question)

    report = engine.warm(chain)
    assert report.filled == report.num_clusters - 1
    assert any("parser broke" in p for p in report.problems)


async def test_warming_an_async_chain(engine: Engine) -> None:
    engine.build(questions=QUESTIONS, retriever=search, num_clusters=3, max_pins=1, pca_dim=8)

    async def chain(question: str):
        return ask(engine, question)

    with pytest.raises(ConfigError, match="awarm"):
        engine.warm(chain)
    report = await engine.awarm(chain)
    assert report.filled == report.num_clusters


def test_a_folder_that_is_no_store_is_refused(tmp_path: Path, model, embedder) -> None:
    (tmp_path / "letter.txt").write_text("dear bank")
    with pytest.raises(Exception, match="not a centroidkv store"):
        Engine.open(tmp_path, model=model, embedder=embedder)
    with pytest.raises(ConfigError, match="unknown setting tenent"):
        Engine.open(tmp_path / "new", model=model, embedder=embedder, tenent="x")


LONG = "How do I open an account at this bank, and what does it cost me every month? " * 3


def test_the_next_turn_computes_only_the_new_message(open_engine: Callable[..., Engine]) -> None:
    turns = [Message("user", LONG)]
    with open_engine() as engine:
        first = engine.generate(turns, max_tokens=40)
        earlier = first.usage.prompt_tokens + first.usage.completion_tokens
        assert first.usage.stored_tokens == earlier - 1
    turns += [Message("assistant", first.text), Message("user", "And a card?")]
    engine = open_engine()
    second = engine.generate(turns, max_tokens=8)
    assert second.usage.reused_tokens >= 0.95 * earlier
    assert (second.usage.outcome, second.usage.reason) == ("hit", "repeated_prefix")
    assert second.token_ids == engine.generate(turns, max_tokens=8, reuse="off").token_ids
    assert engine.check().is_clean


def test_a_history_window_falls_back_to_what_is_still_identical(engine: Engine) -> None:
    system = Message("system", "You are the assistant of a bank and answer in one sentence. " * 3)
    turns = [system, Message("user", LONG)]
    first = engine.generate(turns, max_tokens=20)
    window = [system, Message("assistant", first.text), Message("user", "And a card?")]
    second = engine.generate(window, max_tokens=4)
    shared = len(engine.model.encode([system]).token_ids) - 1
    assert abs(second.usage.reused_tokens - shared) <= 1
    assert second.token_ids == engine.generate(window, max_tokens=4, reuse="off").token_ids


def test_ten_threads_get_the_answers_they_get_alone(engine: Engine) -> None:
    build_and_warm(engine)
    asked = [f"{q} please" for q in QUESTIONS] + ["is a wire to another country a loan"]
    alone = [ask(engine, q, reuse="off").token_ids for q in asked]
    with ThreadPoolExecutor(10) as threads:
        together = [done.token_ids for done in threads.map(lambda q: ask(engine, q), asked)]
    assert together == alone
    assert engine.stats().counters["outcome_hit"] >= 5
    assert engine.check().is_clean


async def test_ten_tasks_get_the_answers_they_get_alone(engine: Engine) -> None:
    build_and_warm(engine)
    asked = [f"{q} please" for q in QUESTIONS] + ["is a wire to another country a loan"]
    alone = [ask(engine, q, reuse="off").token_ids for q in asked]
    together = await asyncio.gather(*(asyncio.to_thread(ask, engine, q) for q in asked))
    assert [done.token_ids for done in together] == alone


def test_a_build_and_growth_at_once_make_two_plans(engine: Engine) -> None:
    for question in QUESTIONS:
        ask(engine, question)  # each grows the online plan behind the answer
    engine.build(questions=QUESTIONS, retriever=search, num_clusters=3, max_pins=1, pca_dim=8)
    engine.flush()
    assert engine.check().is_clean, engine.check().problems


def test_a_store_is_its_owners_alone(open_engine: Callable[..., Engine], tmp_path: Path) -> None:
    before = os.umask(0o022)
    try:
        engine = open_engine()
        build_and_warm(engine)
        engine.answers  # noqa: B018
        engine.flush()
        inner = tmp_path / "store/chroma"
        # Chroma writes as it likes while it is open; its folder keeps others out.
        open_to_others = [p for p in wide(tmp_path / "store") if inner not in p.parents]
        assert open_to_others == []
        engine.close()
        assert wide(tmp_path / "store") == []
    finally:
        os.umask(before)


def wide(folder: Path) -> list[Path]:
    """Return what others than the owner may read, write or enter."""
    return [p for p in (folder, *folder.rglob("*")) if p.stat().st_mode & 0o077]


def test_a_model_that_serves_other_engines_keeps_nothing_of_a_closed_one(
    open_engine: Callable[..., Engine], model: TransformersModel
) -> None:
    engine, other = open_engine(), open_engine()
    tenant = engine.for_tenant("acme")
    own = [one._policies.exact.residence for one in (engine, tenant, other)]
    for one in (engine, tenant, other):
        one.generate("how do I block a lost card", max_tokens=2)
    assert all(kept_arenas(model, residence) for residence in own)
    engine.close()
    assert [bool(kept_arenas(model, residence)) for residence in own] == [False, False, True]
