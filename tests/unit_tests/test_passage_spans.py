"""Where passages stand in a prompt, and which heads prompts share."""

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from centroidkv.passage_spans import LEAST_TOKENS, locate
from centroidkv.prompt_heads import PromptHeads
from centroidkv.types import Prompt

WORDS = st.text(alphabet="abc ", min_size=20, max_size=60).filter(str.strip)


def cut(text: str, borders: list[int]) -> Prompt:
    """Tokenize by cutting a text at some places; a token's id is its text's hash."""
    starts = sorted({0, *(b % len(text) for b in borders)}) if text else []
    ends = [*starts[1:], len(text)]
    ids = tuple(abs(hash(text[a:b])) % 1000 for a, b in zip(starts, ends, strict=True))
    return Prompt(text, ids, tuple(starts))


@given(st.lists(WORDS, min_size=1, max_size=4), st.lists(st.integers(0, 400), max_size=150))
def test_a_unit_is_whole_tokens_within_its_passage(passages: list[str], borders: list[int]) -> None:
    prompt = cut("head: " + " / ".join(passages) + " question", borders)
    layout = locate(prompt, passages, question="question")
    ends = [*prompt.offsets[1:], len(prompt.text)]
    stop = layout.head
    for span in layout.spans:
        assert span.stop - span.start >= LEAST_TOKENS
        assert span.start >= stop  # ascending, none within another, all behind the head
        stop = span.stop
        text = prompt.text[prompt.offsets[span.start] : ends[span.stop - 1]]
        assert any(text in p for p in passages)


@pytest.mark.parametrize("glue", ["", "\n"])
def test_a_token_over_the_border_belongs_to_no_passage(glue: str) -> None:
    passage = "x" * 40
    text = f"head {passage}{glue}yy question"
    borders = [0, 4, *range(6, 44), 44, len(text) - 8]  # the first is " x", the last "x...yy "
    prompt = cut(text, borders)
    (span,) = locate(prompt, [passage], question="question").spans
    assert prompt.offsets[span.start] == 6
    assert prompt.offsets[span.stop] == 44
    assert locate(prompt, [passage], question="question").head == 2


def test_what_two_prompts_begin_with_is_a_head(tmp_path: Path) -> None:
    path = tmp_path / "heads.json"
    heads = PromptHeads(path)
    system = tuple(range(20))
    assert heads.note((*system, 91, 92)) is None
    assert heads.note((7, 7, 7, 7, *system)) is None  # another template
    assert heads.note((*system, 93)) == system
    assert PromptHeads(path).find((*system, 94)) == system
    assert PromptHeads(path).find(system[:-1]) is None
    for damaged in ("[[1, 2", "[[]]", "[[Infinity]]", "[" * 9999, "[1]"):
        path.write_text(damaged, encoding="utf-8")
        assert PromptHeads(path).find(system) is None


def test_templates_that_share_only_a_beginning_have_no_head(tmp_path: Path) -> None:
    heads = PromptHeads(tmp_path / "heads.json")
    assert heads.note((1, 2, 3, 4, *range(100, 130))) is None
    assert heads.note((1, 2, 3, 4, *range(200, 230))) is None
