"""However an answer is cut into pieces, it stops at the same place."""

from collections.abc import Sequence

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from centroidkv.models.stopping import StopScanner

texts = st.text(alphabet="abc\n", max_size=30)
stops = st.text(alphabet="abc\n", min_size=1, max_size=4)
sizes = st.lists(st.integers(1, 5), max_size=30)


def cut(text: str, lengths: Sequence[int]) -> list[str]:
    pieces, start = [], 0
    for length in lengths:
        pieces.append(text[start : start + length])
        start += length
    return [*pieces, text[start:]]


def run(pieces: Sequence[str], stop: Sequence[str]) -> tuple[str, bool]:
    scanner, out = StopScanner(stop), []
    for piece in pieces:
        out.append(scanner.push(piece))
        if scanner.is_stopped:
            break
    return "".join([*out, scanner.flush()]), scanner.is_stopped


@given(texts, stops, sizes)
def test_any_chunking_ends_where_the_whole_text_is_split(text, stop, lengths) -> None:
    answer, is_stopped = run(cut(text, lengths), [stop])
    assert answer == text.split(stop)[0]
    assert is_stopped == (stop in text)


@given(texts, st.lists(stops, min_size=2, max_size=3), sizes, sizes)
@example("abc", ["abc", "b"], [1, 1, 1], [3])
def test_any_chunking_gives_the_same_answer_with_several_stops(text, several, one, other) -> None:
    assert run(cut(text, one), several) == run(cut(text, other), several)


@given(texts, st.lists(stops, max_size=3), sizes)
def test_no_stop_string_is_ever_let_through(text, several, lengths) -> None:
    answer, is_stopped = run(cut(text, lengths), several)
    assert not any(s in answer for s in several)
    assert text.startswith(answer)
    assert is_stopped or answer == text


@given(texts, sizes)
def test_without_stops_every_piece_passes_at_once(text, lengths) -> None:
    scanner = StopScanner(())
    for piece in cut(text, lengths):
        assert scanner.push(piece) == piece
    assert scanner.flush() == "" and not scanner.is_stopped


def test_only_what_may_become_a_stop_is_held_back() -> None:
    scanner = StopScanner(["END"])
    assert [scanner.push(p) for p in ("abcE", "N", "X", "EE", "ND")] == ["abc", "", "ENX", "E", ""]
    assert scanner.is_stopped and scanner.flush() == ""


def test_what_was_held_back_comes_when_the_answer_ends() -> None:
    scanner = StopScanner(["END"])
    assert scanner.push("abEN") == "ab"
    assert scanner.flush() == "EN"
    assert scanner.flush() == ""


@pytest.mark.parametrize("pieces", [["질", "문", ":"], ["질문:"], ["x질", "문:y"]])
def test_stops_of_any_script_are_found(pieces: list[str]) -> None:
    answer, is_stopped = run(pieces, ["질문:"])
    assert is_stopped and answer in ("", "x")
