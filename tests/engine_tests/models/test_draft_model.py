"""A small model's guesses are verified: answers stay what they are, and useless guesses stop."""

from collections.abc import Callable, Sequence

import pytest
from transformers import PreTrainedTokenizerFast

from centroidkv import Engine
from centroidkv.config import EngineConfig, Sampling
from centroidkv.errors import ConfigError, UnsupportedModel
from centroidkv.models.attention import use_shared_kv_heads
from centroidkv.models.draft_loading import STOCK_TOKENS, attach_draft_model
from centroidkv.models.draft_model import DraftModel, ModelDrafter
from centroidkv.models.drafting import Kind, Pace
from centroidkv.models.loading import wrap_model
from centroidkv.models.transformers_model import TransformersModel
from centroidkv.types import Drafts, Token
from small_parts import make_llama, make_tokenizer
from word_bank import ask, build_and_warm

PROMPT = list(b"a card that was lost is blocked in the app, a card that was ")


class Eager(Pace):
    """Verifies four tokens of the small model each time, and nothing else."""

    def length(self, kind: Kind, most: int, *, behind: int = 1) -> int:
        return 0

    def choice(
        self,
        kind: Kind,
        most: int,
        *,
        behind: int = 1,
        making: Callable[[int], float] | None = None,
    ) -> tuple[int, float]:
        return min(most, 4), 1.0


class Clock(Pace):
    """Takes every forward to last `first_s` and `more_s` for each further token; counts them."""

    def __init__(self, first_s: float, more_s: float) -> None:
        super().__init__()
        self._first_s, self._more_s = first_s, more_s
        for num_tokens in (1, 4, 64, 256):
            super().timed(num_tokens, first_s + more_s * (num_tokens - 1))
        self.widths: list[int] = []

    @property
    def total_s(self) -> float:
        return sum(self._first_s + self._more_s * (n - 1) for n in self.widths)

    def timed(self, num_tokens: int, seconds: float) -> None:
        self.widths.append(num_tokens)
        super().timed(num_tokens, self._first_s + self._more_s * (num_tokens - 1))

    def spent(self, kind: Kind, seconds: float) -> None:
        """Nothing: the seconds are those of the real clock."""


def pair(
    tokenizer: PreTrainedTokenizerFast, *, seed: int = 0, pace: Pace, small_pace: Pace | None = None
) -> TransformersModel:
    model = wrap_model(make_llama(), tokenizer)
    small = wrap_model(make_llama(seed=seed), tokenizer)
    model.pace, small.pace = pace, small_pace or Pace()
    model.draft_model = DraftModel(small, vocabulary=len(tokenizer))
    return model


def answer(
    model: TransformersModel,
    prompt: Sequence[int] = PROMPT,
    *,
    drafted: bool = True,
    namespace: str = "one",
    **sampling: object,
) -> list[Token]:
    chosen = Sampling.of({"max_tokens": 24, **sampling})
    sequence = model.open_sequence(len(prompt) + chosen.max_tokens, prompt, namespace=namespace)
    try:
        held = sequence.num_tokens
        sequence.prefill(prompt[held:], Drafts(tuple(prompt)) if drafted else None)
        return list(sequence.decode(chosen))
    finally:
        sequence.close()


def ids(tokens: Sequence[Token]) -> list[int]:
    return [t.id for t in tokens]


def test_a_small_model_of_the_same_weights_guesses_everything(
    tokenizer: PreTrainedTokenizerFast,
) -> None:
    model = pair(tokenizer, pace=Eager())
    plain, drafted = answer(model, drafted=False), answer(model)
    assert ids(drafted) == ids(plain)
    assert [t.text for t in drafted] == [t.text for t in plain]
    # One token is the model's own, then four were guessed; at the last one it would save nothing.
    assert [t.is_drafted for t in drafted] == [bool(i % 5) for i in range(23)] + [False]
    assert not any(t.is_drafted for t in plain)


@pytest.mark.parametrize("seed", [0, 1])
@pytest.mark.parametrize("temperature", [0.0, 0.7])
def test_no_guess_of_a_model_changes_an_answer(
    tokenizer: PreTrainedTokenizerFast, seed: int, temperature: float
) -> None:
    model = pair(tokenizer, seed=seed, pace=Eager())
    settled = {"temperature": temperature, "seed": 3, "max_tokens": 60}
    assert ids(answer(model, **settled)) == ids(answer(model, drafted=False, **settled))


def test_its_kv_follows_the_answer_whatever_was_refused(
    tokenizer: PreTrainedTokenizerFast,
) -> None:
    model = pair(tokenizer, seed=1, pace=Eager())
    assert model.draft_model is not None
    small = model.draft_model.model
    drafter = model.draft_model.begin(model.pace, PROMPT, namespace="n", capacity=200)
    assert isinstance(drafter, ModelDrafter)
    taken = [50]
    for more in ([51], [60, 61, 62], [], [70]):
        guessed = list(drafter.propose(taken, room=40, over_s=0.0))
        fresh = small.open_sequence(200)
        fresh.prefill([*PROMPT, *taken])
        expected = []
        for _ in range(4):
            expected.append(int(fresh.logits.argmax()))
            fresh.prefill(expected[-1:])
        fresh.close()
        assert guessed == expected
        # Two of the guesses are right, then the answer goes another way.
        taken = [*taken, *guessed[:2], *more]
    drafter.close(len(taken))


def test_wrong_guesses_switch_the_small_model_off(tokenizer: PreTrainedTokenizerFast) -> None:
    small_pace = Clock(0.1, 0.001)
    model = pair(tokenizer, seed=1, pace=Clock(1.0, 0.05), small_pace=small_pace)
    plain = ids(answer(model, drafted=False, max_tokens=60))
    counts = []
    for _ in range(4):
        before = len(small_pace.widths)
        assert ids(answer(model, max_tokens=60)) == plain
        counts.append(len(small_pace.widths) - before)
    assert counts[0] > 0
    assert counts[1:] == [0, 0, 0]


def test_a_small_model_as_slow_as_the_large_one_is_not_asked(
    tokenizer: PreTrainedTokenizerFast,
) -> None:
    small_pace = Clock(1.0, 0.05)
    model = pair(tokenizer, pace=Clock(1.0, 0.05), small_pace=small_pace)
    answer(model)
    assert small_pace.widths == []


def test_a_prompt_too_dear_to_read_is_not_read(tokenizer: PreTrainedTokenizerFast) -> None:
    small_pace = Clock(0.1, 0.5)
    model = pair(tokenizer, pace=Clock(1.0, 0.05), small_pace=small_pace)
    answer(model, PROMPT * 4)
    assert small_pace.widths == []


def test_what_an_earlier_prompt_shares_is_not_read_again(
    tokenizer: PreTrainedTokenizerFast,
) -> None:
    model = pair(tokenizer, pace=Eager())
    assert model.draft_model is not None
    small = model.draft_model.model
    answer(model, PROMPT)
    longer = [*PROMPT, *b"found"]
    assert small.num_held(longer, namespace="one") == len(PROMPT)
    assert small.num_held(longer, namespace="another") == 0
    assert ids(answer(model, longer)) == ids(answer(model, longer, drafted=False))


def test_with_a_small_model_in_the_engine_answers_are_the_same(
    open_engine: Callable[..., Engine], tokenizer: PreTrainedTokenizerFast
) -> None:
    model = wrap_model(make_llama(), tokenizer)
    engine = open_engine(model=model, draft_model=make_llama())
    model.pace = Eager()
    build_and_warm(engine)
    question = "please block my lost card"
    cold, warm = ask(engine, question, reuse="off"), ask(engine, question)
    assert warm.token_ids == cold.token_ids
    assert cold.usage.drafted_tokens == 0
    assert warm.usage.drafted_tokens > warm.usage.completion_tokens // 2
    assert warm.usage.reused_tokens > 0


def test_where_requests_take_turns_the_small_models_do(
    open_engine: Callable[..., Engine], tokenizer: PreTrainedTokenizerFast
) -> None:
    model = wrap_model(make_llama(), tokenizer, max_batch=1)
    packable = make_llama()
    use_shared_kv_heads(packable)
    open_engine(model=model, draft_model=packable, max_running=1)
    assert model.draft_model is not None
    small = model.draft_model.model
    assert isinstance(small, TransformersModel)
    assert not small.packing.is_possible


def test_both_models_are_compared_when_the_small_one_is_loaded(
    tokenizer: PreTrainedTokenizerFast,
) -> None:
    rates = []
    for seed in (0, 1):
        model = wrap_model(make_llama(), tokenizer)
        attach_draft_model(model, make_llama(seed=seed))
        rates.append(model.pace.right("model", 1))
        assert model.draft_model is not None
        assert model.draft_model.model.pace.seconds(1) < 1
    assert rates[0] > 0.7 > 0.5 > rates[1]
    assert STOCK_TOKENS <= 16


def test_a_model_of_other_tokens_is_refused_in_one_line() -> None:
    model = wrap_model(make_llama(), make_tokenizer())
    other = make_tokenizer()
    other.add_tokens(["<|new|>"])
    with pytest.raises(UnsupportedModel, match="same tokenizer") as caught:
        attach_draft_model(model, wrap_model(make_llama(), other))
    assert "\n" not in str(caught.value)
    assert model.draft_model is None


def test_a_small_model_needs_drafts() -> None:
    with pytest.raises(ConfigError, match="drafts=False"):
        EngineConfig.of({"draft_model": "bundled:smollm2", "drafts": False})


def test_an_answer_too_long_for_the_small_model_goes_without_it(
    tokenizer: PreTrainedTokenizerFast,
) -> None:
    model = wrap_model(make_llama(), tokenizer)
    small = wrap_model(make_llama(positions=64), tokenizer)
    model.pace, model.draft_model = Eager(), DraftModel(small, vocabulary=len(tokenizer))
    assert not any(t.is_drafted for t in answer(model))


def test_a_failing_small_model_costs_its_guesses_only(
    tokenizer: PreTrainedTokenizerFast, caplog: pytest.LogCaptureFixture
) -> None:
    class Full(TransformersModel):
        def open_sequence(self, *_: object, **__: object):  # type: ignore[no-untyped-def]
            raise RuntimeError("out of memory")

    model = pair(tokenizer, pace=Eager())
    assert model.draft_model is not None
    model.draft_model.model.__class__ = Full
    assert ids(answer(model)) == ids(answer(model, drafted=False))
    assert caplog.text.count("out of memory") == 1


def test_a_small_model_that_fails_while_it_reads_gives_its_memory_back(
    tokenizer: PreTrainedTokenizerFast,
) -> None:
    class Full(TransformersModel):
        def forward(self, *_: object, **__: object):  # type: ignore[no-untyped-def]
            raise RuntimeError("out of memory")

    model = pair(tokenizer, pace=Eager())
    assert model.draft_model is not None
    small = model.draft_model.model
    assert isinstance(small, TransformersModel)
    small.__class__ = Full
    sequence = model.open_sequence(len(PROMPT) + 64, PROMPT, namespace="one")
    sequence.prefill(PROMPT, Drafts(tuple(PROMPT)))
    steps = sequence.decode(Sampling(max_tokens=64))
    assert [next(steps) for _ in range(3)]
    # The answer goes on, or waits for who reads it; the next one's small model must not.
    assert (small.batcher.num_open, small.arenas.num_bytes) == (0, 0)
    sequence.close()


def test_a_kind_that_wastes_time_pauses_until_time_has_paid_for_it() -> None:
    pace = Pace()
    for _ in range(50):
        pace.timed(1, 1.0)
        pace.timed(2, 1.1)
        pace.guessed("match", is_right=True)
    assert pace.length("match", 1) == 1
    pace.spent("match", 10.0)
    assert pace.is_paused("match") and pace.length("match", 1) == 0
    assert pace.length("repeat", 1) == 1
    num_forwards = 0
    while pace.is_paused("match"):
        pace.timed(1, 1.0)
        num_forwards += 1
    # At most half a percent of the time is given to it.
    assert num_forwards >= 6.0 / 0.005 * 0.99


def test_what_is_stored_goes_before_reading_the_prompt(
    tokenizer: PreTrainedTokenizerFast,
) -> None:
    small_pace = Clock(0.01, 0.001)
    model = pair(tokenizer, pace=Clock(1.0, 0.05), small_pace=small_pace)
    plain = ids(answer(model, drafted=False))
    sequence = model.open_sequence(len(PROMPT) + 24)
    sequence.prefill(PROMPT, Drafts(tuple(PROMPT), repeat=tuple(plain)))
    assert ids(list(sequence.decode(Sampling(max_tokens=24)))) == plain
    sequence.close()
    assert small_pace.widths == []
    assert ids(answer(model, max_tokens=2)) == plain[:2]
    assert small_pace.widths == []  # nothing left to save
    drafted = answer(model)
    assert ids(drafted) == plain and sum(t.is_drafted for t in drafted) > 12
    assert small_pace.widths[0] == len(PROMPT) + 1


@pytest.mark.parametrize("temperature", [0.0, 0.8])
def test_a_small_model_that_knows_nothing_costs_at_most_two_percent(
    tokenizer: PreTrainedTokenizerFast, temperature: float
) -> None:
    large, small, plain = Clock(1.0, 0.12), Clock(0.05, 0.006), Clock(1.0, 0.12)
    model = pair(tokenizer, seed=1, pace=large, small_pace=small)
    assert model.draft_model is not None
    attach_draft_model(model, model.draft_model.model)
    large.widths.clear()
    small.widths.clear()
    for number in range(8):
        settled = {"temperature": temperature, "seed": number, "max_tokens": 60}
        model.pace = plain
        true = ids(answer(model, drafted=False, namespace=f"plain {number}", **settled))
        model.pace = large
        assert ids(answer(model, namespace=f"drafted {number}", **settled)) == true
    assert large.total_s + small.total_s <= 1.02 * plain.total_s
