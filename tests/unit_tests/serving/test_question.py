"""The question of a plain prompt is found behind its marker, else at its end."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from centroidkv.serving.question import MOST, end_of, question_from

CONTEXT = "Cards are blocked in the app.\n\nLoans are repaid early."


@pytest.mark.parametrize("marker", ["Question:", "question:", "QUESTION:", "Query:", "질문:"])
@pytest.mark.parametrize("space", ["", " ", "\n", "  \t"])
def test_the_question_stands_behind_its_marker(marker: str, space: str) -> None:
    assert question_from(f"{CONTEXT}\n\n{marker}{space}Is it free?") == "Is it free?"
    assert question_from(f"{marker}{space}Is it free?") == "Is it free?"


@pytest.mark.parametrize("space", ["Question :", "  질문 :", "\tQuery:"])
def test_space_around_a_marker_does_not_hide_it(space: str) -> None:
    assert question_from(f"{CONTEXT}\n{space} 무료인가요?") == "무료인가요?"


@pytest.mark.parametrize("answer", ["Answer:", "answer: ", "ANSWER :", "답변:", "답:", "Answer:\n"])
@pytest.mark.parametrize("marker", ["Question:", "질문:", ""])
def test_the_answers_marker_is_not_part_of_the_question(marker: str, answer: str) -> None:
    prompt = f"{CONTEXT}\n\n{marker} Is it free?\n{answer}"
    assert question_from(prompt) == "Is it free?"


def test_of_several_questions_the_last_is_asked() -> None:
    prompt = "Question: an example?\nAnswer: yes\n\nQuestion: the real one?\nAnswer:"
    assert question_from(prompt) == "the real one?"


def test_a_question_may_have_several_lines() -> None:
    assert question_from("Question: first line\nsecond line\n") == "first line\nsecond line"


def test_a_marker_within_a_line_is_text() -> None:
    prompt = "The note says question: unclear.\n\nWhat does it mean?"
    assert question_from(prompt) == "What does it mean?"


def test_without_a_marker_the_last_paragraph_is_the_question() -> None:
    assert question_from(f"{CONTEXT}\n\nIs it free?\n\n  \n") == "Is it free?"
    assert question_from("one line only") == "one line only"


@pytest.mark.parametrize("joint", ["\n", " "])
def test_of_a_prompt_without_blank_lines_the_end_has_a_questions_length(joint: str) -> None:
    passages = joint.join(["Cards are blocked in the app."] * 40)
    assert end_of(question_from(f"{passages}{joint}Is it free?")) == "Is it free?"
    assert end_of(question_from("word " * 200)) == ("word " * 200)[-MOST - 1 :].strip()
    assert end_of("") == ""


@pytest.mark.parametrize("prompt", ["", "  \n\n ", "\n"])
def test_a_blank_prompt_has_no_question(prompt: str) -> None:
    assert question_from(prompt) == ""


@given(st.text())
def test_any_text_has_a_question_that_stands_in_it(prompt: str) -> None:
    found = question_from(prompt)
    assert found in prompt and found == found.strip()
