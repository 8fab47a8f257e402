"""Where passages stand in a prompt, and which heads prompts share."""

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from centroidkv.passage_spans import LEAST_TOKENS, locate
from centroidkv.prompt_heads import NUM_CONTEXTS, RUN_UP_TOKENS, Head, PromptHeads
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
    assert heads.note((*system, 93)) == Head(system)
    assert PromptHeads(path).find((*system, 94)) == Head(system)
    assert PromptHeads(path).find(system[:-1]) is None
    path.write_text(f"[{list(system)}]", encoding="utf-8")  # as it was before run-ups
    assert PromptHeads(path).find((*system, 94)) == Head(system)
    damaged_ones = ("[[1, 2", "[[]]", "[[Infinity]]", "[" * 9999, "[1]", "[{}]", '[{"head": [1]}]')
    for damaged in damaged_ones:
        path.write_text(damaged, encoding="utf-8")
        assert PromptHeads(path).find(system) is None


def test_templates_that_share_only_a_beginning_have_no_head(tmp_path: Path) -> None:
    heads = PromptHeads(tmp_path / "heads.json")
    assert heads.note((1, 2, 3, 4, *range(100, 130))) is None
    assert heads.note((1, 2, 3, 4, *range(200, 230))) is None


def test_a_head_takes_its_run_up_from_the_first_passages_and_keeps_it(tmp_path: Path) -> None:
    path = tmp_path / "heads.json"
    heads = PromptHeads(path)
    heads.add(range(20))
    head = Head(tuple(range(20)))
    one, two, three = ((n,) * 600 for n in (91, 92, 93))
    assert heads.with_run_up(head, [one]).run_up == (one,)
    assert heads.with_run_up(head, [one, two]).run_up == (one, two)  # one was short
    known = heads.with_run_up(head, [three])
    assert known.run_up == (one, two)
    assert PromptHeads(path).find(range(21)) == known
    assert heads.with_run_up(Head((7,) * 9), [one]) == Head((7,) * 9)  # not known


@given(st.lists(st.integers(1, 2 * RUN_UP_TOKENS), max_size=12))
def test_a_run_up_is_whole_passages_within_its_size(sizes: list[int]) -> None:
    passages = [(100 + n,) * size for n, size in enumerate(sizes)]
    heads = PromptHeads(Path("nowhere"), read_only=True)
    heads.add(range(9))
    run_up = heads.with_run_up(Head(tuple(range(9))), passages).run_up
    assert set(run_up) <= set(passages)
    assert bool(run_up) == bool(passages)
    assert len(run_up) == 1 or sum(map(len, run_up)) <= RUN_UP_TOKENS


@given(
    st.lists(st.integers(1, 50), max_size=9),
    st.integers(0, 8),
    st.integers(0, 200).map(lambda n: n + 9),
)
def test_contexts_are_the_head_and_other_passages(sizes: list[int], own: int, most: int) -> None:
    run_up = tuple((100 + n,) * size for n, size in enumerate(sizes))
    head = Head(tuple(range(9)), run_up)
    passage = run_up[own] if own < len(run_up) else (7, 7)
    contexts = head.contexts(passage, most=most)
    assert 1 <= len(contexts) <= NUM_CONTEXTS
    for context in contexts:
        assert context[:9] == head.token_ids
        assert len(context) <= most
        assert passage[0] not in context[9:]
    others = [p for p in run_up if p != passage]
    if 9 + sum(map(len, others)) <= most:
        found = [t for context in contexts for t in context[9:]]
        assert sorted(found) == sorted(t for p in others for t in p)
