"""A share of the traffic is a set of questions, the same ones at every time and place."""

import subprocess
import sys

import pytest

from centroidkv.routing.share import is_in_share

QUESTIONS = [f"question number {i}?" for i in range(4000)]


@pytest.mark.parametrize("share", [0.01, 0.1, 0.5, 0.9])
def test_about_that_share_of_the_questions_is_in_it(share: float) -> None:
    found = sum(is_in_share(q, share, salt="plan-1") for q in QUESTIONS) / len(QUESTIONS)
    deviation = (share * (1 - share) / len(QUESTIONS)) ** 0.5
    assert abs(found - share) < 4 * deviation


def test_nothing_is_in_no_share_and_all_in_the_whole() -> None:
    assert not any(is_in_share(q, 0.0, salt="x") for q in QUESTIONS)
    assert all(is_in_share(q, 1.0, salt="x") for q in QUESTIONS)


def test_a_larger_share_holds_the_smaller_one() -> None:
    small = {q for q in QUESTIONS if is_in_share(q, 0.1, salt="x")}
    large = {q for q in QUESTIONS if is_in_share(q, 0.3, salt="x")}
    assert small < large


def test_another_trial_takes_other_questions() -> None:
    one = {q for q in QUESTIONS if is_in_share(q, 0.1, salt="plan-1")}
    two = {q for q in QUESTIONS if is_in_share(q, 0.1, salt="plan-2")}
    assert 0 < len(one & two) < 0.3 * len(one)


def test_spaces_do_not_count_and_odd_text_has_its_place() -> None:
    assert is_in_share("a  b\n", 0.5, salt="x") == is_in_share("a b", 0.5, salt="x")
    assert is_in_share("\ud800", 1.0, salt="x")


def test_another_process_sends_a_question_the_same_way() -> None:
    code = (
        "from centroidkv.routing.share import is_in_share\n"
        f"print([is_in_share(q, 0.3, salt='s') for q in {QUESTIONS[:40]!r}])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == str([is_in_share(q, 0.3, salt="s") for q in QUESTIONS[:40]])
