"""Trying every KV level on one model: the answers to some prompts, behind KV of each level.

The model answers a prompt greedily; then its prompt's KV, but the last token's, is coded and
decoded, and the same answer is run behind it. What differs between the distributions of next
tokens behind raw and behind coded KV is the codec's doing alone. Real block files are made, so
that all overheads are in the sizes. Knows no approval but the bar it is given.
"""

import time
from collections.abc import Iterable, Sequence
from typing import TypeAlias

import numpy as np
from numpy.typing import NDArray

from centroidkv.config import Sampling
from centroidkv.errors import UnsupportedModel
from centroidkv.kv.blocks import Piece, block_id, chain, namespace_id
from centroidkv.kv.codec import CODING, LEVELS, BlockCoder, block_bytes, parse_block
from centroidkv.precision.codec_report import MOST_KL, CodecReport, LevelFigures, save_report
from centroidkv.progress import no_progress, progress_bar
from centroidkv.protocols import CausalModel, ScoringSequence
from centroidkv.rotary import to_float32
from centroidkv.routing.plan import Plan
from centroidkv.settings import is_count, is_number, require
from centroidkv.store import Store
from centroidkv.types import FloatArray, KVBlock, Message, Prompt

Asked: TypeAlias = str | Sequence[Message]

NUM_PROMPTS = 8
ANSWER_TOKENS = 48
_BF16_BYTES = 2
_NAMESPACE = namespace_id("codec report")
_SYSTEM = "Answer the question from the context, in one or two sentences."

__all__ = ["LevelTrial", "measure_levels", "plan_prompts"]


def measure_levels(
    store: Store,
    model: CausalModel,
    plan: Plan | None,
    prompts: Iterable[Asked] | None = None,
    *,
    num_tokens: int = ANSWER_TOKENS,
    most_kl: float = MOST_KL,
    show_progress: bool = False,
) -> CodecReport:
    """Measure every level on some prompts, approve those within the bar, and keep the report.

    Args:
        store: Where the report is kept, unless it is read-only.
        model: The model that it is about.
        plan: Whose clusters make the prompts, if none are given.
        prompts: Texts or messages, as long as those that will be asked.
        num_tokens: Next tokens of each prompt that are compared, at most.
        most_kl: Mean KL up to which a level is approved, in nats.
        show_progress: Draw a progress bar.

    Raises:
        ConfigError: There is nothing to measure with, or a setting is out of range.
        UnsupportedModel: The model gives no logits.
    """
    require(is_count(num_tokens, 1), f"num_tokens must be 1 or more, not {num_tokens!r}")
    require(
        is_number(most_kl) and most_kl >= 0, f"most_kl must be a number, 0 or more, not {most_kl!r}"
    )
    require(
        not isinstance(prompts, str), "prompts must be a list of prompts; put the one into a list"
    )
    asked = list(prompts) if prompts is not None else plan_prompts(plan)
    require(asked, "there are no prompts to measure with; build a plan first, or give prompts")
    progress = progress_bar() if show_progress else no_progress
    trial = LevelTrial(model, num_tokens=num_tokens)
    for done, prompt in enumerate(asked):
        progress("codec report", done, len(asked))
        trial.add(model.encode(prompt))
    progress("codec report", len(asked), len(asked))
    report = trial.report(most_kl=most_kl)
    if not store.read_only:
        save_report(store.path, report)
    return report


def plan_prompts(plan: Plan | None, most: int = NUM_PROMPTS) -> list[Asked]:
    """Return prompts like those that a plan's clusters are made for, of clusters all over it."""
    if plan is None:
        return []
    pinning = [c for c in plan.clusters if c.pins]
    step = max(1, len(pinning) // most)
    asked: list[Asked] = []
    for cluster in pinning[::step][:most]:
        context = "\n\n".join(p.text for p in plan.pinned(cluster))
        user = f"Context:\n{context}\n\nQuestion: {cluster.representative}"
        asked.append([Message("system", _SYSTEM), Message("user", user)])
    return asked


class LevelTrial:
    """Collects what the levels do to one model, prompt after prompt."""

    def __init__(self, model: CausalModel, *, num_tokens: int = ANSWER_TOKENS) -> None:
        self._model = model
        self._num_tokens = num_tokens
        rotary = getattr(model, "rotary", None)
        self._levels = {level: _Level(BlockCoder(level, rotary)) for level in LEVELS}
        self._prompt_tokens = 0
        self._num_prompts = 0

    def add(self, prompt: Prompt) -> None:
        """Answer a prompt, and run the answer behind the prompt's KV at every level.

        Raises:
            ConfigError: The prompt leaves no room for an answer, or holds one token.
            UnsupportedModel: The model gives no logits.
        """
        limit = self._model.context_tokens - len(prompt)
        require(
            len(prompt) > 1 and limit > 0,
            f"a prompt of {len(prompt)} tokens cannot be measured with: it must have two, and fit "
            f"into the model's context of {self._model.context_tokens}",
        )
        answer, pieces = self._answered(prompt, min(limit, self._num_tokens))
        rest = (prompt.token_ids[-1], *answer[:-1])
        exact = _log_probabilities(self._scores([p.block for p in pieces], rest))
        for level in self._levels.values():
            blocks = level.coded(pieces)
            if level.coder.level != "raw":
                level.compare(exact, _log_probabilities(self._scores(blocks, rest)))
        self._num_prompts += 1
        self._prompt_tokens += len(prompt)

    def report(self, *, most_kl: float) -> CodecReport:
        """Return the figures of all prompts so far."""
        raw = self._levels["raw"]
        return CodecReport(
            model=self._model.fingerprint,
            coding=CODING,
            most_kl=most_kl,
            num_prompts=self._num_prompts,
            prompt_tokens=self._prompt_tokens,
            num_positions=max((len(x.divergences) for x in self._levels.values()), default=0),
            numbers_per_token=raw.num_numbers // max(1, raw.num_tokens),
            levels=tuple(x.figures(raw, most_kl=most_kl) for x in self._levels.values()),
        )

    def _answered(self, prompt: Prompt, most: int) -> tuple[list[int], list[Piece]]:
        """Return the model's own answer and the prompt's KV, but the last token's, in blocks."""
        ids = prompt.token_ids
        sequence = self._model.open_sequence(len(ids) + most)
        try:
            sequence.prefill(ids)
            answer = [t.id for t in sequence.decode(Sampling(max_tokens=most))]
            pieces = [
                Piece(x.parent, ids[x.start : x.stop], sequence.snapshot(x.start, x.stop))
                for x in chain(_NAMESPACE, ids[:-1])
            ]
        finally:
            sequence.close()
        return answer, pieces

    def _scores(self, blocks: Sequence[KVBlock], token_ids: Sequence[int]) -> FloatArray:
        num_tokens = sum(b.num_tokens for b in blocks) + len(token_ids)
        sequence = self._model.open_sequence(num_tokens)
        try:
            if not isinstance(sequence, ScoringSequence):
                raise UnsupportedModel(
                    f"{type(self._model).__name__} gives no logits to compare, so its KV can be "
                    "kept raw alone; levels are for transformers models, without bitwise=True"
                )
            sequence.restore(blocks)
            return sequence.score(token_ids)
        finally:
            sequence.close()


class _Level:
    """Sums over what one level did."""

    def __init__(self, coder: BlockCoder) -> None:
        self.coder = coder
        self.divergences: list[float] = []
        self.num_bytes = self.num_tokens = self.num_numbers = self._num_same = 0
        self._decode_s = 0.0
        self._errors = np.zeros((2, 2))  # keys and values: squared differences, squares

    def coded(self, pieces: Iterable[Piece]) -> list[KVBlock]:
        """Code blocks and decode them again."""
        return [self._through(piece) for piece in pieces]

    def _through(self, piece: Piece) -> KVBlock:
        block = piece.block
        ids = (block_id(piece.parent, piece.token_ids), piece.parent, _NAMESPACE)
        raw = block_bytes(block, ids=ids, token_ids=piece.token_ids, coder=self.coder)
        begin = time.perf_counter()
        decoded = parse_block(raw, "codec report").block
        self._decode_s += time.perf_counter() - begin
        self.num_bytes += len(raw)
        self.num_tokens += block.num_tokens
        self.num_numbers += block.keys.size + block.values.size
        pairs = ((block.keys, decoded.keys), (block.values, decoded.values))
        for i, (exact, other) in enumerate(pairs):
            truth = to_float32(exact, block.dtype)
            apart = to_float32(other, block.dtype) - truth
            self._errors[i] += float(np.vdot(apart, apart)), float(np.vdot(truth, truth))
        return decoded

    def compare(self, exact: NDArray[np.float64], other: NDArray[np.float64]) -> None:
        """Add positions; both hold log-probabilities, [positions, vocabulary]."""
        kl = (np.exp(exact) * (exact - other)).sum(-1)
        self.divergences += np.maximum(kl, 0.0).tolist()
        self._num_same += int((exact.argmax(-1) == other.argmax(-1)).sum())

    def figures(self, raw: "_Level", *, most_kl: float) -> LevelFigures:
        kl = np.asarray(self.divergences or [0.0])
        key_error, value_error = np.sqrt(self._errors[:, 0] / np.maximum(self._errors[:, 1], 1e-30))
        mean_kl = float(kl.mean())
        is_raw = self is raw
        return LevelFigures(
            level=self.coder.level,
            bytes_per_token=round(self.num_bytes / self.num_tokens, 1),
            ratio_to_bf16=round(_BF16_BYTES * self.num_numbers / self.num_bytes, 3),
            ratio_to_raw=round(raw.num_bytes / self.num_bytes, 3),
            key_error=float(key_error),
            value_error=float(value_error),
            mean_kl=mean_kl,
            p95_kl=float(np.quantile(kl, 0.95)),
            top1_agreement=1.0 if is_raw else self._num_same / len(kl),
            decode_tokens_per_s=round(self.num_tokens / max(self._decode_s, 1e-9)),
            is_approved=is_raw or (bool(self.divergences) and mean_kl <= most_kl),
        )


def _log_probabilities(logits: FloatArray) -> NDArray[np.float64]:
    """Return log-softmax, in float64 so that small divergences are not rounding."""
    shifted = logits.astype(np.float64)
    shifted -= shifted.max(-1, keepdims=True)
    shifted -= np.log(np.exp(shifted).sum(-1, keepdims=True))
    return shifted
