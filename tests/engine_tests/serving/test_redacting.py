"""`redact`: what it changes is in no file, and what it leaves is reused as ever."""

from collections.abc import Callable
from pathlib import Path

import pytest
from langchain_core.outputs import Generation

from centroidkv import Engine
from centroidkv.errors import ConfigError
from centroidkv.langchain import CentroidKVAnswerCache
from centroidkv.serving.redacting import Redactor
from centroidkv.types import Message, Prompt
from trace_parts import tokens_of, traces
from word_bank import PASSAGES, QUESTIONS, ask, build_and_warm

NAME = "Zebulon"
PERSONAL = f"what does a wire cost for {NAME} Quibble"
PLAIN = "what does a wire cost for my aunt"


def mask(text: str) -> str:
    return text.replace(NAME, "[name]")


def assert_nowhere(engine: Engine, folder: Path) -> None:
    secret = tokens_of(engine, NAME)
    engine.close()
    assert traces(folder, NAME) == []
    assert [f for f in folder.rglob("*") if f.is_file() and secret in f.read_bytes()] == []


@pytest.mark.parametrize("reuse", ["exact", "representative"])
def test_no_byte_of_what_is_personal_is_in_any_file(
    reuse: str, open_engine: Callable[..., Engine], tmp_path: Path
) -> None:
    engine = open_engine(
        redact=mask,
        near_misses=1,
        online_radius=0.01,
        reuse=reuse,
        remote=f"file://{tmp_path / 'remote'}",
    )
    engine.build(
        questions=[*QUESTIONS, f"is {NAME} my friend"],
        retriever=lambda q: [],
        num_clusters=3,
        pca_dim=8,
    )
    for question in (PERSONAL, PLAIN, PERSONAL):
        ask(engine, question)
        engine.generate(f"{'Much text before the question. ' * 5}{question}", max_tokens=80)
        turns = [
            Message("user", f"{'Long talk. ' * 12}{question}"),
            Message("assistant", f"Dear {NAME}, it is twenty dollars."),
            Message("user", "and for me"),
        ]
        engine.generate(turns, max_tokens=8)
    cache = CentroidKVAnswerCache(engine=engine)
    cache.update(f"Question: {PERSONAL}", "model", [Generation(text="twenty")])
    cache.update("Question: who is it", "model", [Generation(text=f"it is {NAME}")])
    cache.update("Question: what is it", "model", [Generation(text="a wire")])
    engine.flush()
    assert len(engine.answers.all()) == 1
    held = engine.export(question=mask(PERSONAL)).counts
    assert held["history"] == 1
    assert_nowhere(engine, tmp_path)


def test_the_context_before_the_question_is_reused(
    open_engine: Callable[..., Engine], tmp_path: Path
) -> None:
    engine = open_engine(redact=mask)
    build_and_warm(engine)
    first = ask(engine, PERSONAL)
    assert first.usage.reason == "pinned_prefix"
    engine.flush()
    assert first.token_ids == ask(engine, PERSONAL, reuse="off").token_ids
    assert_nowhere(engine, tmp_path)


def test_a_cluster_is_filled_by_a_personal_question(
    open_engine: Callable[..., Engine], tmp_path: Path
) -> None:
    engine = open_engine(redact=mask, near_misses=1)
    ask(engine, PERSONAL)
    engine.flush()
    again = ask(engine, PERSONAL.replace(NAME, "Xebulon"))
    assert again.usage.reused_tokens > len(PASSAGES["wire"])
    plan = engine.router.plan
    assert plan is not None
    assert plan.clusters[0].representative == mask(PERSONAL)
    assert_nowhere(engine, tmp_path)


def test_a_redact_that_fails_stores_nothing_and_costs_no_answer(
    open_engine: Callable[..., Engine], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    def broken(text: str) -> str:
        raise ValueError(text)

    engine = open_engine(redact=broken)
    assert ask(engine, PERSONAL).text == ask(engine, PERSONAL, reuse="off").text
    engine.flush()
    assert engine.stats().counters["failed_redactions"] > 0
    assert caplog.text.count("redact raised ValueError") == 1
    stored = [h.about["num_tokens"] for h in engine.export().entries if h.place == "blocks"]
    assert sum(stored) < 3  # what the chat template puts before the text
    assert NAME not in caplog.text
    assert_nowhere(engine, tmp_path)


@pytest.mark.parametrize(
    ("text", "question", "offsets", "kept"),
    [
        ("Who is Zebulon?", "Who is Zebulon?", range(15), 0),
        ("Hi. Who is Zebulon?", "Who is Zebulon?", range(19), 4),
        ("Hi. Who is Zebulon?", "", range(19), 11),  # as far as nothing is changed
        ("Hi. Who is Zebulon?", "Who is Zebulon?", (0, 3, 7, 10, 18), 1),  # a token " Who"
        ("Hi. Who is it?", "Who is it?", range(14), None),
        ("I am Zebulon. Who is it?", "Who is it?", range(24), 5),
    ],
)
def test_what_may_be_stored_ends_before_what_is_personal(
    text: str, question: str, offsets: object, kept: int | None
) -> None:
    starts = tuple(offsets)
    prompt = Prompt(text, starts, starts)
    redactor = Redactor(mask, lambda _: None)
    assert redactor.storable_tokens(prompt, text, None, question) == kept


def test_redact_is_a_function(open_engine: Callable[..., Engine]) -> None:
    with pytest.raises(ConfigError, match="redact"):
        open_engine(redact="mask")
