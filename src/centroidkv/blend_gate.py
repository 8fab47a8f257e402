"""The gate: before a model's prompts are blended, some are, and held against full prefills.

Blending changes logits, by how much depends on the model. The figures are kept in the store under
the model's fingerprint; below the bar the mode is refused, with the figures.
"""

import json
import logging
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from centroidkv.config import Sampling
from centroidkv.files import write_atomic
from centroidkv.fingerprint import fingerprint
from centroidkv.gate_prompts import QUESTIONS, gate_prompt, shown_in
from centroidkv.passage_spans import locate
from centroidkv.passage_store import BlendingModel, computed, joined
from centroidkv.placement import PlacedPassage
from centroidkv.protocols import BlendingSequence
from centroidkv.types import FloatArray, Prompt

_log = logging.getLogger("centroidkv")

VERSION = "1"
ANSWER_TOKENS = 32
# Passages computed alone, with nothing computed again, are at 0.2 and 0.83 with the bundled model.
MOST_KL, LEAST_AGREEMENT = 0.1, 0.9

__all__ = ["BlendGate", "GateFigures"]


@dataclass(frozen=True, slots=True)
class GateFigures:
    """How far blended prompts were from computed ones.

    `kl` is the mean Kullback-Leibler divergence of the first token's distribution, in nats;
    `agreement` the part of the tokens of a greedy answer that both choose, given those before.
    """

    kl: float
    agreement: float
    num_prompts: int
    num_tokens: int

    @property
    def passes(self) -> bool:
        return self.kl <= MOST_KL and self.agreement >= LEAST_AGREEMENT

    def __str__(self) -> str:
        return (
            f"KL {self.kl:.3f} (at most {MOST_KL}) and agreement {self.agreement:.2f} (at least "
            f"{LEAST_AGREEMENT}) over {self.num_prompts} prompts"
        )


class BlendGate:
    """The gate of one store, one model and one share of recomputed tokens."""

    def __init__(self, folder: Path, model: BlendingModel, share: float | None) -> None:
        self._model = model
        self._share = share
        self._path = folder / f"{fingerprint(VERSION, model.fingerprint, repr(share))[:32]}.json"

    def figures(self, *, read_only: bool = False) -> GateFigures:
        """Return what is kept of an earlier trial; else try, which takes some seconds.

        Raises:
            ContextTooLong: The model's context is too short for the prompts.
        """
        kept = _read(self._path)
        if kept is not None:
            return kept
        figures = self._tried()
        _log.info("prompts blended on trial: %s", figures)
        if not read_only:
            try:
                write_atomic(self._path, json.dumps(asdict(figures)).encode())
            except OSError as error:
                _log.warning("the gate's figures could not be kept: %s", error)
        return figures

    def _tried(self) -> GateFigures:
        kls, agreed = [], []
        for number in range(len(QUESTIONS)):
            prompt = self._model.encode(gate_prompt(number))
            texts = shown_in(number)
            plain, answer = self._plain(prompt)
            kl, same = self._blended(prompt, texts, plain, answer)
            kls.append(kl)
            agreed += same
        return GateFigures(float(np.mean(kls)), float(np.mean(agreed)), len(kls), len(agreed))

    def _plain(self, prompt: Prompt) -> tuple[FloatArray, list[int]]:
        """Prefill a prompt; return its first logits and the greedy answer."""
        sequence = self._open(prompt)
        try:
            sequence.prefill(prompt.token_ids)
            first = _logits(sequence)
            tokens = list(sequence.decode(Sampling(max_tokens=ANSWER_TOKENS)))
        finally:
            sequence.close()
        return first, [t.id for t in tokens]

    def _blended(
        self, prompt: Prompt, texts: Sequence[str], plain: FloatArray, answer: Sequence[int]
    ) -> tuple[float, list[bool]]:
        """Blend a prompt; return the divergence of its first token, and where the answer agrees."""
        layout = locate(prompt, texts, question="")
        spans = layout.spans
        units = [prompt.token_ids[s.start : s.stop] for s in spans]
        blocks = [joined(b) for b in computed(self._model, prompt.token_ids[: layout.head], units)]
        placed = [PlacedPassage(s.start, s.stop, b) for s, b in zip(spans, blocks, strict=True)]
        sequence = self._open(prompt)
        try:
            sequence.blend(prompt.token_ids, placed, share=self._share)
            kl, same = _divergence(plain, _logits(sequence)), []
            for token in answer:
                same.append(int(_logits(sequence).argmax()) == token)
                sequence.prefill([token])
        finally:
            sequence.close()
        return kl, same

    def _open(self, prompt: Prompt) -> BlendingSequence:
        return self._model.open_sequence(len(prompt) + ANSWER_TOKENS + 1)


def _logits(sequence: Any) -> FloatArray:
    """Return the logits of a sequence's next token, [vocabulary]."""
    logits: FloatArray = sequence.logits.float().cpu().numpy()
    return logits


def _divergence(true: FloatArray, other: FloatArray) -> float:
    """Return the Kullback-Leibler divergence of two distributions given as logits, in nats."""
    p, q = _log_softmax(true), _log_softmax(other)
    return float((np.exp(p) * (p - q)).sum())


def _log_softmax(logits: FloatArray) -> FloatArray:
    shifted = logits.astype(np.float64) - logits.max()
    normalised: FloatArray = shifted - np.log(np.exp(shifted).sum())
    return normalised


def _read(path: Path) -> GateFigures | None:
    try:
        return GateFigures(**json.loads(path.read_text("utf-8")))
    except (OSError, ValueError, TypeError):
        return None  # tried again
