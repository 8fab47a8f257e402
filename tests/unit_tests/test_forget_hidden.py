"""Forgetting finds what is stored under other words, other texts and in cut-off chains."""

import pytest

from centroidkv import Engine, Passage
from centroidkv.privacy.wanted import Wanted
from word_bank import PASSAGES

CARD = PASSAGES["card"]
OLDER = f"Until May another rule was in force. {CARD}"


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


def test_every_text_that_had_a_passage_id_is_forgotten(engine: Engine) -> None:
    for text in (CARD, OLDER):
        for question in ("which card", "how was it lost"):
            ask_about(engine, Passage("doc-1", text), question)
    report = engine.forget(passage="doc-1")
    assert report.is_proven, report
    for text in (CARD, OLDER):
        assert engine.export(passage=text).entries == ()


@pytest.mark.parametrize("pad", [0, 24, 56])
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
