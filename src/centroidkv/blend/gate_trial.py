"""The trial behind the gate: prompts are blended and held against full prefills of the same.

Owns what is measured and how. Knows no bar, and keeps nothing.
"""

import uuid
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from centroidkv.blend.computing import placed
from centroidkv.blend.gate_prompts import QUESTIONS, RUN_UP, gate_prompt, shown_in
from centroidkv.blend.heads import Head, TokenIds
from centroidkv.blend.passages import BlendingModel
from centroidkv.blend.spans import PassageLayout, locate
from centroidkv.config import Sampling
from centroidkv.errors import ModelError
from centroidkv.models.detokenizing import forget_arenas
from centroidkv.protocols import BlendingSequence
from centroidkv.types import FloatArray, Prompt

ANSWER_TOKENS = 32

__all__ = ["GateFigures", "GateTrial"]


@dataclass(frozen=True, slots=True)
class GateFigures:
    """How far blended prompts were from computed ones.

    Over the tokens of greedy answers, each given those before it: `first_kl` is the mean
    Kullback-Leibler divergence of the first token's distribution, `kl` that of all tokens, in nats;
    `agreement` the part of the tokens that both choose.
    """

    first_kl: float
    kl: float
    agreement: float
    num_prompts: int
    num_tokens: int


class GateTrial:
    """Tries one model at one share of recomputed tokens."""

    def __init__(self, model: BlendingModel, share: float | None) -> None:
        self._model = model
        self._share = share
        self._residence = uuid.uuid4().hex

    def run(self) -> GateFigures:
        """Blend and prefill some prompts.

        Raises:
            ContextTooLong: The model's context is too short for them.
        """
        try:
            return self._run()
        finally:
            forget_arenas(self._model, self._residence)

    def _run(self) -> GateFigures:
        firsts: list[float] = []
        kls: list[float] = []
        agreed: list[bool] = []
        for number in range(len(QUESTIONS)):
            prompt = self._encoded(number)
            answer, plain = self._plain(prompt)
            blended = self._blended(prompt, shown_in(number), answer)
            far = _divergences(plain, blended)
            firsts.append(far[0])
            kls += far.tolist()
            agreed += (plain.argmax(1) == blended.argmax(1)).tolist()
        return GateFigures(
            first_kl=float(np.mean(firsts)),
            kl=float(np.mean(kls)),
            agreement=float(np.mean(agreed)),
            num_prompts=len(firsts),
            num_tokens=len(agreed),
        )

    def _encoded(self, number: int, shown: Sequence[str] = ()) -> Prompt:
        messages = gate_prompt(number, shown)
        try:
            return self._model.encode(messages)
        except ModelError:  # there is no template, or one that knows no system message
            return self._model.encode("\n\n".join(m.content for m in messages))

    def _plain(self, prompt: Prompt) -> tuple[list[int], FloatArray]:
        """Prefill a prompt; return its greedy answer, and the logits of each of its tokens."""
        sequence = self._open(prompt)
        try:
            sequence.prefill(prompt.token_ids)
            tokens = list(sequence.decode(Sampling(max_tokens=ANSWER_TOKENS)))
            sequence.truncate(len(prompt) - 1)
            answer = [t.id for t in tokens]
            return answer, sequence.score([prompt.token_ids[-1], *answer[:-1]])
        finally:
            sequence.close()

    def _blended(self, prompt: Prompt, texts: Sequence[str], answer: Sequence[int]) -> FloatArray:
        """Blend a prompt; return the logits of the answer's tokens, each given those before."""
        layout = locate(prompt, texts, question="")
        head = Head(prompt.token_ids[: layout.head], self._run_up())
        ids, exact = prompt.token_ids, layout.spans[0].stop
        passages = placed(self._model, head, ids, layout.spans[1:], namespace=self._residence)
        sequence = self._open(prompt)
        try:
            sequence.prefill(ids[:exact])
            sequence.blend(ids[exact:-1], passages, share=self._share)
            return sequence.score([prompt.token_ids[-1], *answer[:-1]])
        finally:
            sequence.close()

    def _run_up(self) -> tuple[TokenIds, ...]:
        prompt = self._encoded(0, RUN_UP)
        return _units(prompt, locate(prompt, RUN_UP, question=""))

    def _open(self, prompt: Prompt) -> BlendingSequence:
        return self._model.open_sequence(len(prompt) + ANSWER_TOKENS + 1)


def _units(prompt: Prompt, layout: PassageLayout) -> tuple[TokenIds, ...]:
    return tuple(s.unit(prompt.token_ids).token_ids for s in layout.spans)


def _divergences(true: FloatArray, other: FloatArray) -> FloatArray:
    """Return the Kullback-Leibler divergence of each row of logits, [tokens], in nats."""
    p, q = _log_softmax(true), _log_softmax(other)
    divergences: FloatArray = (np.exp(p) * (p - q)).sum(1)
    return divergences


def _log_softmax(logits: FloatArray) -> FloatArray:
    shifted = logits.astype(np.float64) - logits.max(1, keepdims=True)
    normalised: FloatArray = shifted - np.log(np.exp(shifted).sum(1, keepdims=True))
    return normalised
