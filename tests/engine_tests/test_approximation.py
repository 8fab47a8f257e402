"""The source paper's Algorithm 1: what a hit takes, what a miss leaves, and what is said."""

from collections.abc import Callable

import pytest

from centroidkv import Completion, Engine
from centroidkv.errors import ConfigError
from centroidkv.langchain import CentroidKVLLM
from word_bank import QUESTIONS, ask, search

FORMS = ["answer", "continue", "append"]
CARD, CARD_TOO, WIRE = QUESTIONS[0], QUESTIONS[1], QUESTIONS[3]


def plain(engine: Engine, question: str, **options: object) -> Completion:
    return engine.generate(question, max_tokens=12, **options)


@pytest.fixture
def paper(open_engine: Callable[..., Engine]) -> Callable[..., Engine]:
    def opening(**settings: object) -> Engine:
        engine = open_engine(preset="paper", **settings)
        engine.build(questions=QUESTIONS, retriever=search, num_clusters=3, pca_dim=8)
        return engine

    return opening


@pytest.mark.parametrize("form", FORMS)
def test_a_miss_fills_and_the_next_question_of_the_cluster_hits(paper, form: str) -> None:
    engine = paper(representative_form=form)
    first = plain(engine, CARD)
    assert (first.usage.outcome, first.usage.reason) == ("miss", "representative_filled")
    assert not first.usage.approximate
    engine.flush()
    second = plain(engine, CARD_TOO)
    assert second.usage.outcome == "hit"
    assert second.usage.approximate
    assert second.usage.representative == CARD
    assert second.usage.error_bound is None
    assert (
        second.usage.reason
        == {
            "answer": "representative_answer",
            "continue": "representative_kv",
            "append": "representative_appended",
        }[form]
    )
    if form != "append":
        # The answer is the representative's, word for word: that is what the paper does.
        assert second.token_ids == first.token_ids
        assert second.text == first.text


def test_continuing_decodes_from_the_representatives_kv(paper) -> None:
    engine = paper()
    first = plain(engine, CARD)
    engine.flush()
    hit = plain(engine, CARD_TOO)
    assert hit.usage.prompt_tokens == first.usage.prompt_tokens
    assert hit.usage.reused_tokens == first.usage.prompt_tokens - 1


def test_appending_computes_the_new_question_behind_that_kv(paper) -> None:
    engine = paper(representative_form="append")
    first = plain(engine, CARD)
    engine.flush()
    hit = plain(engine, CARD_TOO)
    own = len(engine.model.encode(CARD_TOO))
    assert hit.usage.prompt_tokens == first.usage.prompt_tokens + own
    assert hit.usage.reused_tokens == first.usage.prompt_tokens
    both = engine.model.encode(CARD).text + engine.model.encode(CARD_TOO).text
    exact = engine.generate(both, chat_template=False, max_tokens=12, reuse="off")
    assert hit.token_ids == exact.token_ids


def test_what_does_not_fit_behind_the_representative_is_answered_exactly(paper) -> None:
    engine = paper(representative_form="append")
    long = "The bank blocks a lost card in its app at once. " * 50
    for beginning in ("First: ", "Then: "):
        done = engine.generate(beginning + long, question=CARD, max_tokens=12)
        engine.flush()
    assert done.usage.reason == "representative_too_long"
    assert not done.usage.approximate
    off = engine.generate(beginning + long, question=CARD, max_tokens=12, reuse="off")
    assert done.token_ids == off.token_ids


def test_the_representative_asked_again_is_exact(paper) -> None:
    engine = paper()
    plain(engine, CARD)
    engine.flush()
    again = plain(engine, CARD)
    assert not again.usage.approximate
    assert again.usage.reused_tokens > 0
    assert again.token_ids == plain(engine, CARD, reuse="off").token_ids


def test_other_clusters_are_their_own(paper) -> None:
    engine = paper()
    plain(engine, CARD)
    engine.flush()
    assert plain(engine, WIRE).usage.reason == "representative_filled"


def test_nothing_approximate_is_found_by_an_exact_lookup(paper, open_engine) -> None:
    engine = paper(representative_form="append")
    plain(engine, CARD)
    engine.flush()
    blocks = engine.stats().num_blocks
    hit = plain(engine, CARD_TOO)
    engine.flush()
    assert hit.usage.approximate
    assert hit.usage.stored_tokens == 0
    assert engine.stats().num_blocks == blocks
    exact = plain(engine, CARD_TOO, reuse="exact")
    assert exact.token_ids == plain(engine, CARD_TOO, reuse="off").token_ids
    assert not exact.usage.approximate
    assert engine.check().is_clean


def test_warming_fills_every_cluster_once(paper) -> None:
    engine = paper(representative_form="answer")
    report = engine.warm(lambda q: plain(engine, q))
    assert (report.filled, report.already_filled, report.problems) == (3, 0, {})
    again = engine.warm(lambda q: plain(engine, q))
    assert (again.filled, again.already_filled) == (0, 3)
    assert all(plain(engine, q).usage.outcome == "hit" for q in QUESTIONS)


def test_it_survives_a_restart_and_is_counted(paper, open_engine) -> None:
    engine = paper(representative_form="answer")
    first = plain(engine, CARD)
    engine.close()
    again = open_engine(preset="paper", representative_form="answer")
    hit = plain(again, CARD_TOO)
    assert hit.text == first.text
    assert hit.usage.reason == "representative_answer"
    assert again.stats().counters["reason_representative_answer"] == 1


def test_two_prompts_on_one_engine_do_not_meet(paper) -> None:
    engine = paper(representative_form="answer")
    rag = ask(engine, CARD)
    assert rag.usage.reason == "representative_filled"
    assert plain(engine, CARD_TOO).usage.reason == "representative_filled"
    assert ask(engine, CARD_TOO).usage.representative == CARD


def test_a_stored_answer_is_not_served_for_other_sampling(paper) -> None:
    engine = paper(representative_form="answer")
    plain(engine, CARD)
    longer = engine.generate(CARD_TOO, max_tokens=20)
    assert longer.usage.reason == "representative_filled"


def test_the_papers_system_pins_nothing(paper) -> None:
    engine = paper()
    found = search(CARD)[:1]
    assert engine.compose(engine.route(CARD), found) == found


def test_one_request_may_ask_for_it(engine: Engine) -> None:
    engine.build(questions=QUESTIONS, retriever=search, num_clusters=3, pca_dim=8)
    llm = CentroidKVLLM(engine=engine, max_tokens=12)
    first = llm.invoke(CARD, reuse="representative")
    engine.flush()
    assert llm.invoke(CARD_TOO, reuse="representative") == first
    assert llm.invoke(CARD_TOO) == llm.invoke(CARD_TOO, reuse="off")


def test_without_a_plan_it_answers_exactly(open_engine) -> None:
    engine = open_engine(preset="paper")
    done = plain(engine, CARD)
    assert done.usage.reason == "representative_filled"
    assert not done.usage.approximate
    with pytest.raises(ConfigError, match="nothing to warm"):
        open_engine(preset="paper", tenant="new").warm(lambda q: q)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"preset": "papers"}, "preset must be one of paper, cag"),
        ({"representative_form": "guess"}, "representative_form must be one of answer"),
        ({"max_error": 0}, "max_error must be a number in"),
        ({"max_error": 1.5}, "max_error must be a number in"),
    ],
)
def test_wrong_settings_are_named(open_engine, settings: dict, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        open_engine(**settings)
