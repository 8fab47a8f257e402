"""One request, in order: the online half (source paper, section 3.2, with token equality).

1. render and tokenize   2. find the record of its retrieval   3. match the longest stored prefix
4. restore it, prefill the rest   5. decode   6. say what happened   7. after the answer: learn

Any failure in 2, 3, 4 or 7 costs time, never the answer.
"""

import logging
import sqlite3
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from typing import Literal

from centroidkv.config import Sampling
from centroidkv.errors import ConfigError, ContextTooLong, UnsupportedReuse
from centroidkv.kv.blocks import Match, namespace_id
from centroidkv.kv.tiers import TieredBlocks
from centroidkv.learning import Answered, Learner
from centroidkv.models.stopping import StopScanner
from centroidkv.outcome import Layout, classify, layout
from centroidkv.protocols import CausalModel, RunningSequence
from centroidkv.question import question_from
from centroidkv.routing.records import RecordRing
from centroidkv.types import (
    Chunk,
    Completion,
    KVBlock,
    Message,
    Prompt,
    Reason,
    Record,
    Reuse,
    Token,
    Usage,
)
from centroidkv.warming import current_warming

_log = logging.getLogger("centroidkv")

_FIX = (
    "the prompt puts the question before the passages, so no prefix can repeat and nothing is "
    "reused; put the context first and the question last in the prompt template"
)

__all__ = ["Answering", "Request"]


@dataclass(frozen=True, slots=True)
class Request:
    """What is asked of the model."""

    prompt: str | Sequence[Message]
    sampling: Sampling
    question: str | None = None
    reuse: Reuse = "exact"
    chat_template: bool = True

    def __post_init__(self) -> None:
        if self.reuse in ("blend", "representative"):
            raise UnsupportedReuse(
                f"reuse={self.reuse!r} is not served by this version; use 'exact' or 'off'"
            )
        if self.reuse not in ("exact", "off"):
            raise ConfigError(f"reuse must be 'exact' or 'off', not {self.reuse!r}")
        if not self.prompt:
            raise ConfigError("the prompt is empty; give a text or at least one message")


@dataclass(slots=True)
class _Run:
    """The state of one request on its way."""

    request: Request
    begin: float
    prompt: Prompt
    record: Record | None
    question: str
    where: Layout
    dropped_pins: int = 0
    match: Match = field(default_factory=lambda: Match(()))
    reused: int = 0
    tier: Literal["memory", "disk", "none"] = "none"
    problem: Reason | None = None
    load_s: float = 0.0
    prefill_s: float = 0.0
    ttft_s: float = 0.0


class Answering:
    """Answers requests with one model from one store."""

    def __init__(
        self,
        model: CausalModel,
        blocks: TieredBlocks,
        records: RecordRing,
        learner: Learner,
    ) -> None:
        self.model = model
        self.namespace = learner.namespace
        self._blocks = blocks
        self._records = records
        self._learner = learner
        self._warned_order = False

    def stream(self, request: Request) -> Iterator[Chunk]:
        """Answer piece by piece; the last chunk carries the completion.

        Raises:
            ContextTooLong: The prompt does not fit even without its pins.
        """
        run = self._prepare(request)
        warming = current_warming()
        if warming is not None:
            warming.offer(run.prompt, run.where)
        limit = self.model.context_tokens - len(run.prompt)
        sampling = replace(request.sampling, max_tokens=min(request.sampling.max_tokens, limit))
        sequence = self.model.open_sequence(len(run.prompt) + sampling.max_tokens)
        try:
            if request.reuse != "off":
                self._restore(run, sequence)
            started = time.perf_counter()
            sequence.prefill(run.prompt.token_ids[run.reused :])
            run.prefill_s = time.perf_counter() - started
            yield from self._decode(run, sampling, sequence)
        finally:
            sequence.close()

    # 1, 2

    def _prepare(self, request: Request) -> _Run:
        begin = time.perf_counter()
        user_text = _user_text(request.prompt)
        record = self._records.find(user_text)
        prompt, dropped = self._fitting(request, record)
        question = request.question or (record.question if record else question_from(user_text))
        where = layout(prompt, record, question=question, user_text=user_text.strip())
        if where.is_question_first and not self._warned_order:
            self._warned_order = True
            _log.warning(_FIX)
        return _Run(request, begin, prompt, record, question, where, dropped)

    def _fitting(self, request: Request, record: Record | None) -> tuple[Prompt, int]:
        """Render the prompt; while it is too long, drop pins that were not retrieved."""
        messages: str | Sequence[Message] = request.prompt
        optional = [p for p in record.passages if p.text not in record.found] if record else []
        room = self.model.context_tokens - 1
        dropped = 0
        prompt = self.model.encode(messages, chat_template=request.chat_template)
        while len(prompt) > room and optional:
            messages = _without(messages, optional.pop().text.strip())
            dropped += 1
            prompt = self.model.encode(messages, chat_template=request.chat_template)
        if len(prompt) > room:
            raise ContextTooLong(prompt_tokens=len(prompt), context_tokens=room + 1)
        return prompt, dropped

    # 3, 4

    def _restore(self, run: _Run, sequence: RunningSequence) -> None:
        """Put the longest stored prefix into the sequence; on any fault, what is sound of it."""
        started = time.perf_counter()
        try:
            run.match = self._blocks.match(self.namespace, run.prompt.token_ids)
        except (sqlite3.Error, OSError) as error:
            run.problem = "store_failed"
            self._learner.fault("store_failed", error)
            return
        in_memory = all(self._blocks.memory.has(s.id) for s in run.match.steps)
        with self._blocks.disk.leases.hold(s.id for s in run.match.steps):
            sequence.restore(self._loaded(run))
        run.reused = sequence.num_tokens
        if run.reused:
            run.tier = "memory" if in_memory else "disk"
        run.load_s = time.perf_counter() - started

    def _loaded(self, run: _Run) -> Iterator[KVBlock]:
        for step in run.match.steps:
            try:
                block = self._blocks.get(step.id)
            except sqlite3.Error as error:
                self._learner.fault("store_failed", error)
                block = None
            if block is None:
                run.problem = "block_damaged"
                return
            yield block.part(0, step.stop - step.start)

    # 5

    def _decode(self, run: _Run, sampling: Sampling, sequence: RunningSequence) -> Iterator[Chunk]:
        started = time.perf_counter()
        scanner = StopScanner(sampling.stop)
        tokens: list[Token] = []
        text: list[str] = []
        try:
            for token in sequence.decode(sampling):
                if not tokens:
                    run.ttft_s = time.perf_counter() - run.begin
                tokens.append(token)
                piece = scanner.push(token.text)
                if piece:
                    text.append(piece)
                    yield Chunk(piece)
                if scanner.is_stopped:
                    break
            rest = scanner.flush()
            if rest:
                text.append(rest)
                yield Chunk(rest)
        except GeneratorExit:
            # Nobody reads on; what was computed is kept all the same.
            self._finish(run, sequence, tokens, started)
            raise
        ended = bool(tokens and tokens[-1].is_end) or scanner.is_stopped
        usage = self._finish(run, sequence, [t for t in tokens if not t.is_end], started)
        completion = Completion(
            text="".join(text),
            token_ids=tuple(t.id for t in tokens if not t.is_end),
            finish_reason="stop" if ended else "length",
            usage=usage,
            margins=tuple(t.margin for t in tokens),
        )
        yield Chunk("", completion)

    # 6, 7

    def _finish(
        self, run: _Run, sequence: RunningSequence, tokens: list[Token], started: float
    ) -> Usage:
        route = run.record.route if run.record else None
        usage = Usage(
            outcome="bypass",
            reason="reuse_off",
            prompt_tokens=len(run.prompt),
            reused_tokens=run.reused,
            completion_tokens=len(tokens),
            dropped_pins=run.dropped_pins,
            cluster=route.cluster.id if route and route.cluster and route.is_admitted else None,
            distance=route.distance if route and route.cluster else None,
            tier=run.tier,
            embed_s=route.embed_s if route else 0.0,
            route_s=route.route_s if route else 0.0,
            load_s=run.load_s,
            prefill_s=run.prefill_s,
            decode_s=time.perf_counter() - started,
            ttft_s=run.ttft_s,
            total_s=time.perf_counter() - run.begin,
        )
        if run.request.reuse == "off":
            self._learner.count(usage)
            return usage
        outcome, reason = classify(
            run.prompt,
            run.where,
            run.record,
            reused=run.reused,
            miss=run.problem or self._miss_reason(run),
        )
        usage = replace(usage, outcome=outcome, reason=reason)
        answered = Answered(
            prompt=run.prompt,
            answer=tuple(t.id for t in tokens),
            is_conversation=not isinstance(run.request.prompt, str),
            record=run.record,
            where=run.where,
            usage=usage,
            match=run.match,
        )
        return replace(usage, stored_tokens=self._learner.after(answered, sequence))

    def _miss_reason(self, run: _Run) -> Reason:
        if run.where.is_question_first:
            return "question_before_context"
        manifest = self._blocks.disk.manifest
        try:
            if not run.reused and manifest.is_empty(self.namespace):
                return "other_model" if manifest.num_blocks() else "empty_store"
        except sqlite3.Error:
            return "store_failed"
        if run.record is None:
            return "no_route"
        return "cluster_not_filled" if run.record.route.is_admitted else "not_admitted"


def _user_text(prompt: str | Sequence[Message]) -> str:
    """Return the text a user's passages and question stand in."""
    if isinstance(prompt, str):
        return prompt
    return "\n\n".join(m.content for m in prompt)


def _without(prompt: str | Sequence[Message], text: str) -> str | Sequence[Message]:
    if isinstance(prompt, str):
        return prompt.replace(text, "", 1)
    return [Message(m.role, m.content.replace(text, "", 1)) for m in prompt]


def model_namespace(model: CausalModel, tenant: str) -> str:
    """Return the KV namespace of a model and a tenant."""
    return namespace_id("kv", model.fingerprint, tenant)
