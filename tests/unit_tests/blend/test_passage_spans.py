"""Where passages stand in a prompt, and which heads prompts share."""

import json
import os
import time
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from centroidkv.blend.heads import NUM_CONTEXTS, RUN_UP_TOKENS, Head, PromptHeads, run_up_of
from centroidkv.blend.spans import LEAST_TOKENS, locate
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
        begins = prompt.text[: prompt.offsets[span.start]].rstrip().endswith((":", "/"))
        assert span.border == (0 if begins else 1)
        unit = span.unit(prompt.token_ids)
        assert (*unit.lead, *unit.token_ids) == prompt.token_ids[span.begin : stop]


@pytest.mark.parametrize("glue", ["", "\n"])
def test_a_token_over_the_border_belongs_to_no_passage(glue: str) -> None:
    passage = "x" * 40
    text = f"head {passage}{glue}yy question"
    borders = [0, 4, *range(6, 44), 44, len(text) - 8]  # the first is " x", the last "x...yy "
    prompt = cut(text, borders)
    layout = locate(prompt, [passage], question="question")
    (span,) = layout.spans
    assert prompt.offsets[span.start] == 6
    assert prompt.offsets[span.stop] == 44
    assert (layout.head, span.border) == (1, 1)


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


def test_a_damaged_file_of_heads_is_set_aside_before_it_is_written(tmp_path: Path) -> None:
    path = tmp_path / "heads" / "one.json"
    path.parent.mkdir()
    for number, change in enumerate(
        (lambda heads: heads.add(range(20)), lambda heads: heads.forget([Head((1, 2, 3, 4))]))
    ):
        path.write_text(f"[[{number}", encoding="utf-8")
        change(PromptHeads(path))
    kept = sorted(p.read_text(encoding="utf-8") for p in (tmp_path / "quarantine").iterdir())
    assert kept == ["[[0", "[[1"]
    assert path.read_text(encoding="utf-8") == "[]"


def test_templates_that_share_only_a_beginning_have_no_head(tmp_path: Path) -> None:
    heads = PromptHeads(tmp_path / "heads.json")
    assert heads.note((1, 2, 3, 4, *range(100, 130))) is None
    assert heads.note((1, 2, 3, 4, *range(200, 230))) is None


def test_a_head_takes_its_run_up_from_the_first_passages_and_keeps_it(tmp_path: Path) -> None:
    path = tmp_path / "heads.json"
    heads = PromptHeads(path)
    heads.add(range(20))
    head = Head(tuple(range(20)))
    one, two = ((n,) * 300 for n in (91, 92))
    assert heads.with_run_up(head, [], shown_tokens=300) == head
    known = heads.with_run_up(head, [one, two], shown_tokens=300)
    assert known.run_up == (one,)
    assert heads.with_run_up(head, [two], shown_tokens=900) == known
    assert PromptHeads(path).find(range(21)) == known
    assert heads.with_run_up(Head((7,) * 9), [one], shown_tokens=9) is None  # not known


def test_the_file_is_the_truth_for_all_processes(tmp_path: Path) -> None:
    one, other = (PromptHeads(tmp_path / "heads.json") for _ in range(2))
    head, second, passage = Head((5,) * 20), Head((6,) * 20), (91,) * 300
    one.add(head.token_ids)
    known = one.with_run_up(head, [passage], shown_tokens=300)
    assert other.with_run_up(head, [(92,) * 300], shown_tokens=300) == known
    with other.holding(known) as is_held, one.holding(head) as is_held_bare:
        assert (is_held, is_held_bare) == (True, False)
    one.forget([head])  # whatever its run-up is
    other.add(second.token_ids)
    assert one.known() == other.known() == [second]


@given(st.lists(st.integers(1, 2 * RUN_UP_TOKENS), max_size=12), st.integers(0, 9000))
def test_a_run_up_is_whole_passages_within_its_size(sizes: list[int], shown: int) -> None:
    passages = [(100 + n,) * size for n, size in enumerate(sizes)]
    heads = PromptHeads(Path("nowhere"), read_only=True)
    heads.add(range(9))
    head = heads.with_run_up(Head(tuple(range(9))), passages, shown_tokens=shown)
    room = min(RUN_UP_TOKENS, NUM_CONTEXTS * shown // 2)
    assert set(head.run_up) <= set(passages)
    assert bool(head.run_up) == bool(passages)
    assert len(head.run_up) == 1 or sum(map(len, head.run_up)) <= room


def test_a_passage_with_and_without_its_ends_is_one() -> None:
    whole = tuple(range(100, 160))
    assert run_up_of([whole, whole[1:], whole[2:-2], whole[20:]]) == (whole, whole[20:])
    head = Head((5,) * 9, (whole, (7,) * 30))
    assert head.contexts(whole[1:-1], most=500) == [(*head.token_ids, *(7,) * 30)]


def test_heads_of_an_earlier_version_are_as_old_as_their_file_and_of_later_than_now_are_new(
    tmp_path: Path,
) -> None:
    path, now = tmp_path / "heads.json", time.time()
    rows = [list(range(9)), {"head": list(range(10, 19)), "run_up": [], "used_s": now + 9999}]
    path.write_text(json.dumps(rows))
    os.utime(path, (now - 500, now - 500))
    heads = PromptHeads(path)
    assert heads.unused_since(now - 600) == []
    assert heads.unused_since(now - 400) == [Head(tuple(range(9)))]
    assert len(PromptHeads(path).unused_since(now + 60)) == 2
    assert heads.find(range(9)) == Head(tuple(range(9)))
    assert PromptHeads(path).unused_since(now - 400) == []


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
