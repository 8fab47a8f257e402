"""Forgetting finds what is stored under other words, other texts and in cut-off chains."""

from collections.abc import Callable, Sequence
from pathlib import Path

import pytest

from centroidkv import Engine, Passage
from centroidkv.privacy.wanted import Wanted
from centroidkv.types import FloatArray
from small_parts import HashEmbedder
from word_bank import PASSAGES

CARD = PASSAGES["card"]
OLDER = "Until May nobody could block anything: whoever lost a card had to come with a passport."


def ask_about(engine: Engine, passage: Passage, question: str) -> None:
    shown = engine.compose(engine.route(question), [passage])
    context = "\n\n".join(p.text for p in shown)
    engine.generate(f"{context}\n\nQuestion: {question}", max_tokens=2, question=question)
    engine.flush()


def test_a_text_with_lone_surrogates_is_found_as_it_was_given(engine: Engine) -> None:
    question, text = "who is \ud800 Ann", f"\ud800 {CARD}"
    ask_about(engine, Passage.of(text), question)
    assert engine.export(question=question).counts["blocks"] > 0
    assert engine.forget(question=question).is_proven
    assert engine.export(question="who is ? Ann").entries == ()
    ask_about(engine, Passage.of(text), question)
    assert engine.forget(passage=text).is_proven
    assert engine.export(passage=f"? {CARD}").entries == ()


@pytest.mark.parametrize("is_opened_again", [False, True])
def test_every_text_that_had_a_passage_id_is_forgotten(
    open_engine: Callable[..., Engine],
    is_opened_again: bool,
) -> None:
    engine = open_engine(online_radius=0.01)
    ask_about(engine, Passage("doc-1", CARD), "which card")
    ask_about(engine, Passage("doc-1", OLDER), "what of a passport in spring")
    if is_opened_again:  # and has no records
        engine.close()
        engine = open_engine(online_radius=0.01)
    report = engine.forget(passage="doc-1")
    assert report.is_proven, report
    for text in (CARD, OLDER):
        assert engine.export(passage=text).entries == ()


@pytest.mark.parametrize("pad", [24, 56])
def test_a_passage_that_repeats_its_beginning_is_forgotten_to_its_first_block(
    engine: Engine, pad: int
) -> None:
    again, other = "The card is blocked in the app at once. " * 4, PASSAGES["wire"]
    begin = f"{'x' * pad} From the context.\n\n"
    engine.generate(f"{begin}{again}\n\n{other}\n\nQuestion: how", max_tokens=2)
    engine.flush()
    assert engine.forget(passage=other).is_proven
    report = engine.forget(passage=again)
    assert report.is_proven, report
    assert engine.export(passage=again).entries == ()


def test_a_forgetting_that_an_earlier_version_wrote_down_is_read() -> None:
    row = Wanted.of(passage="doc-1").as_dict()
    del row["passage_texts"]
    assert Wanted.from_dict({**row, "passage_text": CARD}).passage_texts == (CARD,)
    assert Wanted.from_dict({**row, "passage_text": ""}).passage_texts == ()


class SometimesNan(HashEmbedder):
    """Gives no vector for a question about nan."""

    def embed(self, texts: Sequence[str]) -> FloatArray:
        return super().embed(texts) * (float("nan") if "nan" in texts[-1] else 1.0)


@pytest.mark.parametrize(
    "options",
    [{"embedder": SometimesNan()}, {"redact": lambda text: "" if "nan" in text else text}],
    ids=["no embedding", "masked"],
)
def test_a_passage_of_a_question_that_is_not_noted_is_found_by_its_id(
    open_engine: Callable[..., Engine], options: dict
) -> None:
    engine = open_engine(**options)
    passage = Passage.of(CARD)
    ask_about(engine, passage, "is it nan")
    engine.close()
    again = open_engine(**options)  # which has no records
    assert again.export(passage=CARD).counts["blocks"] > 0
    assert again.forget(passage=passage.id).is_proven
    assert again.export(passage=CARD).entries == ()


def test_an_id_that_nothing_knows_is_no_proof(engine: Engine, tmp_path: Path) -> None:
    passage = Passage.of(CARD)
    engine.generate(f"{CARD}\n\nQuestion: how", max_tokens=2)
    engine.flush()
    report = engine.forget(passage=passage.id)
    assert not report.is_proven
    assert "give its text" in report.problems[0]
    assert "give its text" in engine.export(passage=passage.id).problems[0]
    assert not list(tmp_path.rglob("forgetting/*.json")), "doing it again would tell no more"
    assert engine.forget(passage=CARD).is_proven
