"""A small model of the same tokenizer that guesses how a large one's answer goes on.

Owns the small model's own reading of the prompt and when that is worth its time. Its guesses are
greedy and are verified as stored drafts are, so they change no answer: the large model chooses,
by its own logits, and a guess only counts where it is the same. Source: Y. Leviathan et al.,
"Fast Inference from Transformers via Speculative Decoding" (arXiv:2211.17192).
"""

import logging
import threading
import time
from collections.abc import Sequence
from typing import Protocol

import torch

from centroidkv.errors import ModelError
from centroidkv.models.drafting import Pace
from centroidkv.types import Drafts, common_prefix

_log = logging.getLogger("centroidkv")

ANSWER_TOKENS = 64.0  # of an answer, before any was seen
_NEWEST = 0.1  # weight of the newest answer's length
# A trial, where nothing is known to be gained: so many guesses, in so many forwards.
TRIAL_TOKENS, TRIAL_ROUNDS = 2, 3
MOST_GUESSES = 16  # in one forward

__all__ = ["DraftModel", "ModelDrafter"]


class _Sequence(Protocol):
    @property
    def num_tokens(self) -> int: ...
    @property
    def logits(self) -> torch.Tensor: ...
    def prefill(self, token_ids: Sequence[int], drafts: Drafts | None = None) -> None: ...
    def truncate(self, num_tokens: int) -> None: ...
    def close(self) -> None: ...


class _Model(Protocol):
    pace: Pace

    @property
    def context_tokens(self) -> int: ...
    def open_sequence(
        self, capacity: int, prompt: Sequence[int] = (), *, namespace: str = ""
    ) -> _Sequence: ...
    def num_held(self, prompt: Sequence[int], *, namespace: str) -> int: ...
    def is_end(self, token_id: int) -> bool: ...


class DraftModel:
    """The small model of a large one. Safe for many threads.

    Args:
        model: The small model; its arenas are its own.
        vocabulary: Number of tokens that both models have; others are not guessed.
    """

    def __init__(self, model: _Model, *, vocabulary: int) -> None:
        self.model = model
        self.vocabulary = vocabulary
        self.mean_answer = ANSWER_TOKENS
        self._lock = threading.RLock()  # the garbage collector may end an answer

    def begin(
        self, pace: Pace, prompt: Sequence[int], *, namespace: str, capacity: int
    ) -> "ModelDrafter | None":
        """Follow one answer of the large model, whose pace that is; None if it is too long."""
        if capacity > self.model.context_tokens:
            return None
        return ModelDrafter(self, pace, prompt, namespace=namespace, capacity=capacity)

    def answered(self, num_tokens: int) -> None:
        """Note how long an answer was."""
        with self._lock:
            self.mean_answer += _NEWEST * (num_tokens - self.mean_answer)


class ModelDrafter:
    """Guesses how one answer goes on, with KV of its own that follows the answer.

    The prompt is read when the first guess is asked for, once that promises to save more than it
    costs; what an earlier answer's prompt shares with it is there already.
    """

    def __init__(
        self,
        owner: DraftModel,
        pace: Pace,
        prompt: Sequence[int],
        *,
        namespace: str,
        capacity: int,
    ) -> None:
        self._owner = owner
        self._small = owner.model
        self._pace = pace
        self._prompt = prompt
        self._namespace = namespace
        self._capacity = capacity
        self._sequence: _Sequence | None = None
        self._run: list[int] = []  # what it has KV of behind the prompt
        self._rounds_left = 0  # of a trial
        self._is_over = False

    def propose(self, answer: Sequence[int], *, room: int, over_s: float) -> Sequence[int]:
        """Return guesses at what follows the answer so far; empty where they are not worth it.

        Args:
            answer: Tokens chosen, the last of which no model has run yet.
            room: How many tokens may be guessed.
            over_s: What another draft saves, in seconds; these must save more.
        """
        if self._is_over or (self._sequence is None and over_s):
            return ()  # what is stored goes first
        step, catching_up = self._small.pace.seconds(1), self._catching_up_s(answer)
        if self._sequence is None:
            # Asked once an answer: the longer it is, the less is left to save.
            if not self._is_worth_reading(len(answer), room, reading=catching_up - step):
                self._is_over = True
                return ()
            catching_up = step
        num, saved = self._pace.choice(
            "model",
            min(room, MOST_GUESSES),
            making=lambda extra: catching_up + (extra - 1) * step,
        )
        if self._rounds_left:
            self._rounds_left -= 1
            num = min(max(num, TRIAL_TOKENS), room)
        elif saved <= over_s:
            return ()
        return self._guessed(answer, num)

    def close(self, num_tokens: int) -> None:
        """End with an answer of so many tokens; what was read of the prompt is kept."""
        self._owner.answered(num_tokens)
        self._give_up()

    def _give_up(self) -> None:
        """Guess no more, and give the memory back: others may wait for what stands in it."""
        self._is_over = True
        if self._sequence is not None:
            self._sequence.close()
            self._sequence = None

    def _catching_up_s(self, answer: Sequence[int]) -> float:
        """Return the seconds until the small model has run all there is."""
        behind = len(answer) - common_prefix(self._run, answer)
        if self._sequence is None:
            held = self._small.num_held(self._prompt, namespace=self._namespace)
            behind += len(self._prompt) - held
        return self._small.pace.seconds(max(behind, 1))

    def _is_worth_reading(self, num_answered: int, room: int, *, reading: float) -> bool:
        """Tell whether the rest of the answer promises to save the seconds of reading."""
        if self._pace.is_paused("model"):
            return False
        step = self._small.pace.seconds(1)
        most = min(room, MOST_GUESSES)
        num, saved = self._pace.choice("model", most, making=lambda extra: extra * step)
        expected = self._owner.mean_answer
        left = min(room, max(expected - num_answered, expected / 4))
        if num and saved * left / (1 + self._pace.right("model", num)) > reading:
            return True
        verifying = self._pace.seconds(1 + TRIAL_TOKENS) - self._pace.seconds(1)
        trial = reading + TRIAL_ROUNDS * (TRIAL_TOKENS * step + verifying)
        if self._pace.owed("model") + trial <= 0:
            self._rounds_left = TRIAL_ROUNDS
            return True
        return False

    def _guessed(self, answer: Sequence[int], num: int) -> Sequence[int]:
        begin = time.perf_counter()
        try:
            return self._decoded(answer, num)
        except (RuntimeError, ModelError) as error:
            # Such as no memory left, or other weights than it had. Guesses only save time.
            _log.warning("this answer is decoded without the draft model: %s", error)
            self._give_up()
            return ()
        finally:
            self._pace.spent("model", time.perf_counter() - begin)

    def _decoded(self, answer: Sequence[int], num: int) -> list[int]:
        """Run what was not run yet, then one token after the other, the last one excepted."""
        if self._sequence is None:
            self._sequence = self._small.open_sequence(
                self._capacity, self._prompt, namespace=self._namespace
            )
            self._sequence.prefill([*self._prompt[self._sequence.num_tokens :], *answer])
        else:
            shared = min(common_prefix(self._run, answer), len(answer) - 1)
            self._sequence.truncate(len(self._prompt) + shared)
            self._sequence.prefill(answer[shared:])
        self._run = list(answer)
        guesses: list[int] = []
        while True:
            guesses.append(int(self._sequence.logits[: self._owner.vocabulary].argmax()))
            if len(guesses) >= num or self._small.is_end(guesses[-1]):
                return guesses
            self._sequence.prefill(guesses[-1:])
            self._run.append(guesses[-1])
