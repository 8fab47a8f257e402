"""What looks personal is masked, and what a question needs stays."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from centroidkv.redaction import mask_personal


@pytest.mark.parametrize(
    ("text", "masked"),
    [
        ("my card is 4539 1488 0343 6467", "my card is [card]"),
        ("card 4539-1488-0343-6467 was lost", "card [card] was lost"),
        ("it is 4539148803436467", "it is [card]"),
        ("ssn 123-45-6789", "ssn [ssn]"),
        ("last four digits are 1985", "last four digits are [number]"),
        ("ssn is 103", "ssn is [number]"),
        ("4577", "[number]"),
        ("account 0012345678", "account [number]"),
        ("account no 5.48E+16", "account no [number]"),
        ("548 e 16", "[number]"),
        ("DE89 3704 0044 0532 0130 00 is mine", "[account] is mine"),
        ("write to a.b+c@mail.example.org please", "write to [email] please"),
        ("call +1 (212) 555-0199 now", "call [phone] now"),
        ("call 212-555-0199", "call [phone]"),
        ("it is 5678 1234", "it is [number]"),
        ("my name is John Smith and I lost my card", "my name is [name] and I lost my card"),
        ("My full name: Ann", "My full name: [name]"),
        ("myself john", "myself [name]"),
    ],
)
def test_what_looks_personal_is_masked(text: str, masked: str) -> None:
    assert mask_personal(text) == masked


@pytest.mark.parametrize(
    "text",
    [
        "how do I transfer 5000 dollars",
        "why was I charged $12,500.00",
        "what was the rate in 2024",
        "is a 30 year mortgage at 4.75% better than 15 years",
        "what is a 401k",
        "can I change my name on the card",
        "I need 3 cards for 2 people",
        "대출 이자는 얼마인가요",
    ],
)
def test_what_a_question_needs_stays(text: str) -> None:
    assert mask_personal(text) == text


@given(st.from_regex(r"[1-9][0-9]{12,18}", fullmatch=True), st.sampled_from("ab? "))
def test_no_long_number_survives(digits: str, beside: str) -> None:
    for text in (digits, f"card {digits}", f"({digits}){beside}", f"x {digits}. {beside}"):
        assert digits not in mask_personal(text)


@given(st.text(max_size=200))
def test_masking_twice_changes_nothing_more(text: str) -> None:
    once = mask_personal(text)
    assert mask_personal(once) == once
