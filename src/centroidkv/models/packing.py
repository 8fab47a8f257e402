"""Running a model on one sequence or on a pack of them, and finding out whether it can be.

Owns how a model is called, and what is done where that fails. Whether a model's attention is what
packed attention computes is not guessed from its name: a short trial compares it with the plain
forward.
"""

import inspect
import threading
import time
from collections.abc import Callable, Sequence
from typing import Any, TypeAlias

import torch
from transformers import PreTrainedModel

from centroidkv.models.arena import Arena, KVShape, input_device
from centroidkv.models.attention import NAME
from centroidkv.models.batching import Job
from centroidkv.models.lending import BorrowedArena, SequenceKV
from centroidkv.models.packed import KEYWORD, NotPackable, Pack, Segment

Timed: TypeAlias = Callable[[int, float], None]

__all__ = ["Packing"]

# Of the largest logit: how far the trial may be from the plain forward, by size of the mantissa.
_TOLERANCE = {torch.float32: 1e-3}
_COARSE_TOLERANCE = 0.05
_TRIAL_TOKENS = 8


class Packing:
    """Forwards of one sequence or of several at a time through one model.

    Args:
        model: A loaded model.
        shape: The shape of its KV.
        timed: Told the tokens and seconds of each forward of one sequence.
        most: How many sequences one forward may run; 1 for never more than one.
    """

    def __init__(self, model: PreTrainedModel, shape: KVShape, timed: Timed, *, most: int) -> None:
        self._model = model
        self._shape = shape
        self._timed = timed
        self._most = most
        self._known: bool | None = None if most > 1 else False
        self._lock = threading.Lock()
        config = model.config.get_text_config()
        heads = getattr(config, "num_attention_heads", None) or shape.kv_heads
        self._groups = int(heads) // shape.kv_heads
        self._accepted = inspect.signature(model.forward).parameters

    @property
    def most(self) -> int:
        """How many sequences one forward may run."""
        return self._most if self.is_possible else 1

    @property
    def is_possible(self) -> bool:
        """Whether the model gives the same logits for a pack; tried once, on first use."""
        with self._lock:
            if self._known is None:
                self._known = self._can_be_called() and self._is_right()
            return self._known

    def run_jobs(self, jobs: Sequence[Job]) -> None:
        """Run jobs in one forward; each apart if that fails, so that only one may."""
        held = [j.kv.num_tokens for j in jobs]
        begin = time.perf_counter()
        try:
            if len(jobs) == 1 and isinstance(jobs[0].kv, Arena):
                jobs[0].logits = self._alone(jobs[0], jobs[0].kv)
            else:
                segments = {Segment(j.token_ids, j.kv, j.rows): j for j in jobs}
                for segment, logits in self.run(list(segments)).items():
                    segments[segment].logits = logits
        except BaseException as error:
            for job, num_tokens in zip(jobs, held, strict=True):
                job.kv.resize(num_tokens)
            if not isinstance(error, Exception):
                raise
            if len(jobs) == 1:
                jobs[0].error = error
            else:
                for job in jobs:
                    self.run_jobs([job])
            return
        if len(jobs) == 1:
            self._timed(len(jobs[0].token_ids), time.perf_counter() - begin)

    def _alone(self, job: Job, arena: Arena) -> torch.Tensor:
        """Run one sequence; all rows are computed where the model cannot leave the others out."""
        ids = torch.tensor([list(job.token_ids)], device=input_device(self._model))
        last = {"logits_to_keep": job.rows} if "logits_to_keep" in self._accepted else {}
        with torch.inference_mode():
            output: Any = self._model(
                input_ids=ids, past_key_values=arena.cache, use_cache=True, **last
            )
            logits: torch.Tensor = output.logits[0, -job.rows :]
        return logits

    def run(self, segments: Sequence[Segment]) -> dict[Segment, torch.Tensor]:
        """Run several sequences' new tokens; return each one's logits, [rows, vocabulary].

        Raises:
            NotPackable: The model cannot be run so.
        """
        pack = Pack(segments, groups=self._groups)
        with torch.inference_mode():
            output: Any = self._model(
                input_ids=pack.token_ids,
                position_ids=pack.positions,
                attention_mask=pack.mask,
                past_key_values=pack,
                use_cache=True,
                logits_to_keep=pack.rows,
                **{KEYWORD: pack},
            )
        if pack.num_attended != self._shape.num_layers:
            raise NotPackable(f"{pack.num_attended} of {self._shape.num_layers} layers")
        return dict(pack.split(output.logits[0]))

    def _can_be_called(self) -> bool:
        if self._shape.layers:
            return False  # windows, several shapes or devices
        named = {"position_ids", "logits_to_keep"} <= self._accepted.keys()
        takes_more = any(p.kind is p.VAR_KEYWORD for p in self._accepted.values())
        return named and takes_more and self._model.config._attn_implementation == NAME

    def _is_right(self) -> bool:
        """Compare two sequences on one prefix, in one forward, with each of them alone."""
        size = min(self._model.config.get_text_config().vocab_size, 97)
        tokens = [(7 * i + 3) % size for i in range(_TRIAL_TOKENS)]
        ends = ([5 % size, 11 % size], [13 % size])
        try:
            with torch.inference_mode():
                alone = [self._plain([*tokens, *end], Arena(self._shape, 16)) for end in ends]
                lender = Arena(self._shape, 16)
                self._plain(tokens, lender)
                kvs: tuple[SequenceKV, ...] = (lender, BorrowedArena(lender, _TRIAL_TOKENS, 16))
                segments = [Segment(e, kv) for e, kv in zip(ends, kvs, strict=True)]
                packed = self.run(segments)
        except Exception:  # noqa: BLE001 - whatever an odd model raises, it takes turns
            return False
        tolerance = _TOLERANCE.get(self._shape.dtype, _COARSE_TOLERANCE)
        return all(
            bool((packed[s][0] - plain).abs().max() <= tolerance * plain.abs().max())
            for s, plain in zip(segments, alone, strict=True)
        )

    def _plain(self, token_ids: Sequence[int], arena: Arena) -> torch.Tensor:
        ids = torch.tensor([list(token_ids)], device=self._shape.device)
        output: Any = self._model(input_ids=ids, past_key_values=arena.cache, use_cache=True)
        logits: torch.Tensor = output.logits[0, -1]
        return logits
