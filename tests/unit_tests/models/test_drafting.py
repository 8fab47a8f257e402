"""Drafts: guessed tokens are verified, so answers stay what they are, and bad guesses stop."""

from collections.abc import Sequence

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import PreTrainedTokenizerFast

from centroidkv.config import Sampling
from centroidkv.models.drafting import MOST_TOKENS, Drafter, Kind, Pace
from centroidkv.models.loading import wrap_model
from centroidkv.models.transformers_model import TransformersModel
from centroidkv.types import Drafts, Token
from small_parts import make_llama


class Eager(Pace):
    """Verifies every guess, however long, whatever it costs."""

    def length(self, kind: Kind, most: int, *, behind: int = 1) -> int:
        return most


@pytest.fixture(scope="module")
def eager(tokenizer: PreTrainedTokenizerFast) -> TransformersModel:
    model = wrap_model(make_llama(), tokenizer)
    model.pace = Eager()
    return model


def answer(
    model: TransformersModel,
    prompt: Sequence[int],
    drafts: Drafts | None = None,
    **sampling: object,
) -> tuple[list[Token], int]:
    """Decode; return the tokens and how many have KV behind the prompt."""
    chosen = Sampling.of({"max_tokens": 24, **sampling})
    sequence = model.open_sequence(len(prompt) + chosen.max_tokens)
    try:
        sequence.prefill(prompt, drafts)
        tokens = list(sequence.decode(chosen))
        return tokens, sequence.num_tokens - len(prompt)
    finally:
        sequence.close()


def ids(tokens: Sequence[Token]) -> list[int]:
    return [t.id for t in tokens]


PROMPT = list(b"a card that was lost is blocked in the app, a card that was ")


def test_a_repeated_answer_is_decoded_in_few_forwards_and_is_the_same(
    eager: TransformersModel,
) -> None:
    plain, kept = answer(eager, PROMPT)
    drafted, kept_too = answer(eager, PROMPT, Drafts(tuple(PROMPT), repeat=tuple(ids(plain))))
    assert ids(drafted) == ids(plain)
    assert [t.text for t in drafted] == [t.text for t in plain]
    assert kept == kept_too == len(plain) - 1
    assert all(t.is_drafted for t in drafted)
    assert not any(t.is_drafted for t in plain)


@settings(max_examples=25, deadline=None)
@given(
    repeat=st.lists(st.integers(32, 93), max_size=30),
    answers=st.lists(st.lists(st.integers(32, 93), max_size=30), max_size=3),
    kept=st.integers(0, 24),
    temperature=st.sampled_from([0.0, 0.9]),
)
def test_no_draft_changes_an_answer(
    eager: TransformersModel,
    repeat: list[int],
    answers: list[list[int]],
    kept: int,
    temperature: float,
) -> None:
    settled = {"temperature": temperature, "seed": 3}
    plain, _ = answer(eager, PROMPT, **settled)
    # Right for a while, then anything.
    guess = (*ids(plain)[:kept], *repeat)
    drafts = Drafts(tuple(PROMPT), guess, tuple(map(tuple, answers)))
    drafted, num_kv = answer(eager, PROMPT, drafts, **settled)
    assert ids(drafted) == ids(plain)
    assert num_kv == len(plain) - 1
    if kept:
        assert drafted[0].is_drafted


def test_the_kv_behind_a_refused_guess_is_written_over(eager: TransformersModel) -> None:
    plain, _ = answer(eager, PROMPT)
    wrong = (*ids(plain)[:3], (ids(plain)[3] + 1) % 90, *ids(plain)[4:])
    sequence = eager.open_sequence(len(PROMPT) + 24)
    sequence.prefill(PROMPT, Drafts(tuple(PROMPT), wrong))
    tokens = list(sequence.decode(Sampling(max_tokens=24)))
    end = sequence.num_tokens
    drafted = sequence.snapshot(0, end)
    sequence.close()
    clean = eager.open_sequence(end)
    clean.prefill([*PROMPT, *ids(tokens)][:end])
    expected = clean.snapshot(0, end)
    clean.close()
    assert ids(tokens) == ids(plain)
    assert abs(drafted.keys - expected.keys).max() < 1e-4
    assert abs(drafted.values - expected.values).max() < 1e-4


def test_a_stopped_answer_leaves_the_count_of_its_tokens(eager: TransformersModel) -> None:
    plain, _ = answer(eager, PROMPT)
    sequence = eager.open_sequence(len(PROMPT) + 24)
    sequence.prefill(PROMPT, Drafts(tuple(PROMPT), tuple(ids(plain))))
    steps = sequence.decode(Sampling(max_tokens=24))
    taken = [next(steps) for _ in range(5)]
    assert ids(taken) == ids(plain)[:5]
    assert sequence.num_tokens == len(PROMPT) + 4
    sequence.close()


def test_the_longest_match_is_guessed_and_the_newest_answer_goes_first() -> None:
    drafter = Drafter(Drafts((1, 2, 3, 4, 5), answers=((7, 3, 4, 9, 9), (3, 4, 8, 8))))
    assert list(drafter.propose()[1]) == []
    drafter.push(3)
    drafter.push(4)
    kind, guess = drafter.propose()
    assert (kind, list(guess)) == ("match", [5, 3, 4])  # the prompt is nearest


def test_a_repeat_is_left_where_the_answer_leaves_it() -> None:
    drafter = Drafter(Drafts((), repeat=(5, 6, 7, 8)))
    assert drafter.propose() == ("repeat", (5, 6, 7, 8))
    drafter.push(5)
    assert drafter.propose() == ("repeat", (6, 7, 8))
    drafter.push(9)
    assert drafter.propose()[0] == "match"


def paced(costs: dict[int, float], *, right: bool) -> Pace:
    pace = Pace()
    for _ in range(200):
        for tokens, seconds in costs.items():
            pace.timed(tokens, seconds)
        pace.guessed("match", is_right=right)
    return pace


def test_wrong_guesses_end_drafting() -> None:
    assert paced({1: 1.0, 16: 3.0, 48: 3.5}, right=False).length("match", MOST_TOKENS) == 0


def test_right_guesses_are_as_long_as_they_pay() -> None:
    cheap = paced({1: 1.0, 16: 3.0, 48: 3.5}, right=True).length("match", MOST_TOKENS)
    dear = paced({1: 1.0, 4: 4.0, 16: 16.0, 48: 48.0}, right=True).length("match", MOST_TOKENS)
    assert cheap == MOST_TOKENS
    assert dear == 0


def test_a_guess_behind_the_prompt_counts_only_what_it_adds() -> None:
    pace = paced({1: 1.0, 30: 3.0, 60: 3.2}, right=True)
    assert pace.length("match", 20, behind=30) == 20


def test_one_slow_forward_does_not_change_the_pace() -> None:
    pace = paced({1: 1.0, 16: 3.0, 48: 3.5}, right=True)
    pace.timed(48, 1000.0)
    assert pace.length("match", MOST_TOKENS) > 0


class Clock(Pace):
    """Takes a forward to last one second, and 0.12 for each further token; sums them."""

    def __init__(self) -> None:
        super().__init__()
        self.total_s = 0.0

    def timed(self, num_tokens: int, seconds: float) -> None:
        seconds = 1 + 0.12 * (num_tokens - 1)
        self.total_s += seconds
        super().timed(num_tokens, seconds)


def misleading(text: Sequence[int], *, every: int) -> list[int]:
    """A text in which something else follows each `every` tokens of another."""
    found: list[int] = []
    for i in range(2, len(text)):
        wrong = [(t + 1 - 32) % 60 + 32 for t in text[i : i + 8]]
        found += [*text[max(0, i - every) : i], *wrong]
    return found


@pytest.mark.parametrize("num_right", [0, 12])
@pytest.mark.parametrize("temperature", [0.0, 0.8])
def test_misleading_drafts_cost_at_most_two_percent(
    tokenizer: PreTrainedTokenizerFast, num_right: int, temperature: float
) -> None:
    model = wrap_model(make_llama(), tokenizer)
    plain, drafted = Clock(), Clock()
    for number in range(8):
        settled = {"temperature": temperature, "seed": number, "max_tokens": 60}
        model.pace = plain
        true = ids(answer(model, PROMPT, **settled)[0])
        wrong = misleading(true, every=4)
        drafts = Drafts(tuple(PROMPT), (*true[:num_right], *wrong[:40]), (tuple(wrong),))
        model.pace = drafted
        assert ids(answer(model, PROMPT, drafts, **settled)[0]) == true
    assert drafted.total_s <= 1.02 * plain.total_s


def test_earlier_answers_end_before_what_is_no_token() -> None:
    drafts = Drafts((1, 2, 900), repeat=(5, 6, 100, 7), answers=((100, 8), (2, 900, 9)))
    drafter = Drafter(drafts, num_ids=100)
    assert tuple(drafter.propose()[1]) == (5, 6)
    drafter.push(5)
    drafter.push(6)
    assert 100 not in drafter.propose()[1]
