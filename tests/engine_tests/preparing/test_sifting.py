"""Of a chat log, what asks is kept: once, and with nothing personal in it."""

from collections.abc import Callable, Sequence
from pathlib import Path

import pytest

from centroidkv import Engine
from centroidkv.errors import ConfigError
from centroidkv.preparing.sifting import sift, why_dropped
from centroidkv.types import FloatArray
from small_parts import HashEmbedder
from word_bank import DOMAINS, QUESTIONS, search

# Words of the examples, since the small embedder knows no meanings.
LOG = [
    "hello",
    "Hi Alex, I want to check the balance of my account 4539148803436467",
    "my name is John Smith",
    "4577",
    "ok thanks",
    "yes please",
    "i want to check the balance of my account!",
    "please close my account, mail me at john@mail.example",
    "nothing else",
    "[number] and 250",
]


class Watched(HashEmbedder):
    """Remembers what it was shown."""

    def __init__(self) -> None:
        self.seen: list[str] = []

    def embed(self, texts: Sequence[str]) -> FloatArray:
        self.seen += texts
        return super().embed(texts)


def test_what_asks_is_kept_once_and_masked() -> None:
    sifted = sift(LOG, HashEmbedder())
    assert sifted.questions == [
        "Hi Alex, I want to check the balance of my account [card]",
        "i want to check the balance of my account!",
        "please close my account, mail me at [email]",
    ]
    report = sifted.report
    assert (report.num_turns, report.num_questions, report.num_redacted) == (10, 3, 4)
    assert sum(report.dropped.values()) == 7
    assert report.dropped["bare detail"] >= 2 and report.dropped["small talk"] >= 2


def test_repeated_turns_are_duplicates_whatever_their_case_and_greeting() -> None:
    asked = "I need to report a lost card"
    sifted = sift([asked, f"hello, {asked.upper()}!!", f"ok {asked}"], HashEmbedder())
    assert sifted.questions == [asked] and sifted.report.dropped == {"duplicate": 2}


def test_near_duplicates_are_dropped_when_asked_for() -> None:
    turns = ["I need to report a lost card", "I need to report a lost card now"]
    assert len(sift(turns, HashEmbedder()).questions) == 2
    sifted = sift(turns, HashEmbedder(), near_duplicate=0.9)
    assert sifted.questions == turns[:1] and sifted.report.dropped == {"near duplicate": 1}


def test_nothing_personal_reaches_the_embedder() -> None:
    embedder = Watched()
    sift(LOG, embedder)
    shown = " ".join(embedder.seen)
    assert "4539148803436467" not in shown and "john@" not in shown and "4577" not in shown


def test_a_mask_of_ones_own_takes_the_place_of_ours() -> None:
    sifted = sift(LOG, HashEmbedder(), redact=lambda text: text.replace("balance", "█"))
    assert sifted.questions[0].startswith("Hi Alex, I want to check the █ of my account 4539")


@pytest.mark.parametrize("turn", ["", "  ", "?!", "yes", "THANK YOU", "1234", "[card]", "ssn 12"])
def test_turns_without_words_that_ask_are_told_before_they_are_embedded(turn: str) -> None:
    embedder = Watched()
    assert why_dropped([turn], embedder) != [""] and embedder.seen == []


@pytest.mark.parametrize(
    ("turns", "redact", "message"),
    [
        (["hello", "ok"], None, "none of 2 turns of the chat log asks .* for English"),
        ([], None, "none of 0 turns"),
        (["where is it", 3], None, "must be a text, not 3"),
        (["where is it"], lambda _: None, "redact must return a text, not None"),
    ],
)
def test_what_is_wrong_with_turns_is_named(turns, redact, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        sift(turns, HashEmbedder(), redact=redact)


# building from a log


def test_a_plan_is_built_from_a_log_and_holds_nothing_personal(
    engine: Engine, tmp_path: Path
) -> None:
    path = tmp_path / "log.tsv"
    path.write_text("utterance\n" + "\n".join(LOG) + "\n")
    report = engine.build(chat_log=path, retriever=search, pca_dim=2)
    assert report.num_questions == 3 and report.chat_log is not None
    assert report.chat_log.num_turns == 10
    engine.flush()
    plain = b"".join(p.read_bytes() for p in engine.store.path.rglob("*") if p.is_file())
    assert b"4539148803436467" not in plain and b"john@mail" not in plain
    assert b"check the balance" in plain, "the question itself is there"


def test_questions_of_a_log_learn_the_domains_of_those_given(engine: Engine) -> None:
    engine.build(
        questions=QUESTIONS,
        domains=DOMAINS,
        chat_log=["I need to report a lost card that is lost", "hello"],
        retriever=search,
        pca_dim=8,
    )
    plan = engine.router.plan
    assert plan is not None and sum(c.num_members for c in plan.clusters) == 10
    assert sum(c.num_members for c in plan.clusters if c.domain == "cards") == 4


def test_a_redaction_that_would_be_ignored_is_refused(engine: Engine) -> None:
    with pytest.raises(ConfigError, match=r"redact=\.\.\. masks a chat log"):
        engine.build(questions=QUESTIONS, retriever=search, redact=str.upper)
    with pytest.raises(ConfigError, match=r"give questions=\.\.\. or chat_log=\.\.\."):
        engine.build(retriever=search)
    with pytest.raises(ConfigError, match="0 questions came with 1 domains"):
        engine.build(chat_log=LOG, domains=["x"], retriever=search)


def test_a_log_given_as_turns_may_be_any_iterable(
    open_engine: Callable[..., Engine], tmp_path: Path
) -> None:
    engine = open_engine(tmp_path / "one")
    report = engine.build(chat_log=iter(LOG), retriever=search, pca_dim=2)
    assert report.num_questions == 3
