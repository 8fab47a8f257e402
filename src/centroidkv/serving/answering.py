"""One request, in order: the online half (source paper, section 3.2, with token equality).

1. render and tokenize   2. find the record of its retrieval   3. match the longest stored prefix
4. restore it, prefill the rest   5. decode   6. say what happened   7. after the answer: learn

Any failure in 2, 3, 4 or 7 costs time, never the answer.
"""

import logging
import sqlite3
import time
import uuid
from collections.abc import Generator, Iterator, Sequence
from dataclasses import replace

from centroidkv.config import Sampling
from centroidkv.errors import ContextTooLong, EngineClosing, GenerationTimeout
from centroidkv.kv.tiers import TieredBlocks
from centroidkv.models.stopping import StopScanner
from centroidkv.protocols import CausalModel, RunningSequence
from centroidkv.routing.admission import distance
from centroidkv.routing.records import RecordRing
from centroidkv.serving.answered import Answered
from centroidkv.serving.learning import Learner
from centroidkv.serving.outcome import classify, layout
from centroidkv.serving.question import end_of, question_from
from centroidkv.serving.request import Request, Run, user_text_of, without
from centroidkv.serving.restoring import Restorer
from centroidkv.serving.sharing import Sharing
from centroidkv.serving.single_flight import Flight
from centroidkv.serving.warming import current_warming
from centroidkv.types import (
    Chunk,
    Completion,
    Drafts,
    Message,
    Outcome,
    Prompt,
    Reason,
    Record,
    Token,
    Usage,
)

_log = logging.getLogger("centroidkv")

_FIX = (
    "the prompt puts the question before the passages, so no prefix can repeat and nothing is "
    "reused; put the context first and the question last in the prompt template"
)

__all__ = ["Answering"]


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
        self._queue = learner.store.requests
        self._redactor = learner.redactor
        self._restorer = Restorer(model, blocks, learner)
        self._sharing = Sharing(model, learner, self._restorer)
        self._warned_order = False
        # KV that an arena still holds is found by this engine alone: neither by another tenant
        # nor by another store with the same model.
        self.residence = uuid.uuid4().hex

    def stream(self, request: Request) -> Iterator[Chunk]:
        """Answer piece by piece; the last chunk carries the completion.

        Raises:
            ContextTooLong: The prompt does not fit even without its pins.
            GenerationTimeout: The answer was not complete in time.
        """
        return self.run(self.prepare(request))

    def run(self, run: Run) -> Iterator[Chunk]:
        """Answer a prepared request.

        Raises:
            ContextTooLong: The prompt leaves no room for an answer.
            GenerationTimeout: The answer was not complete in time.
            QueueFull: Too many requests run and wait already.
            EngineClosing: The process was told to end.
        """
        warming = current_warming()
        if warming is not None:
            warming.offer(run.prompt, run.where)
        if len(run.prompt) >= self.model.context_tokens:
            raise ContextTooLong(
                prompt_tokens=len(run.prompt), context_tokens=self.model.context_tokens
            )
        with run.place_in(self._queue) as place:
            yield from place.watch(self._computed(run))

    def _computed(self, run: Run) -> Generator[Chunk]:
        request = run.request
        limit = self.model.context_tokens - len(run.prompt)
        sampling = replace(request.sampling, max_tokens=min(request.sampling.max_tokens, limit))
        sequence = self._open_sequence(run, len(run.prompt) + sampling.max_tokens)
        flight: Flight | None = None
        try:
            if request.reuse != "off":
                flight = self._restore(run, sequence)
            self._fill(run, sequence)
            if flight is not None:
                self._sharing.hand_on(run, sequence, flight)
                flight = None  # lands when the blocks are on disk
            if run.reused or run.exact_tokens is not None:
                run.kv_precision = self._learner.kv_precision
            yield from self._decode(run, sampling, sequence)
        finally:
            if flight is not None:
                flight.land()
            sequence.close()

    # 1, 2

    def prepare(self, request: Request) -> Run:
        """Render and tokenize a request, and find what its retrieval noted.

        Raises:
            ContextTooLong: The prompt does not fit even without its pins.
        """
        begin = time.perf_counter()
        user_text = user_text_of(request.prompt)
        record = self._records.find(user_text, request.question or "")
        prompt, dropped = self._fitting(request, record)
        told = request.question or (record.question if record else "")
        question = told or question_from(user_text)
        # A guess may be the whole prompt, and then any reuse would seem to leave the question only.
        asked = told or end_of(question)
        where = layout(prompt, record, question=asked, user_text=user_text.strip())
        storable = self._redactor.storable_tokens(prompt, request.prompt, record, asked)
        if where.is_question_first and not self._warned_order:
            self._warned_order = True
            _log.warning(_FIX)
        run = Run(request, begin, prompt, record, question, where, dropped)
        run.storable_tokens = storable
        return run

    def _fitting(self, request: Request, record: Record | None) -> tuple[Prompt, int]:
        """Render the prompt; while it is too long, drop pins that were not retrieved."""
        messages: str | Sequence[Message] = request.prompt
        optional = [p for p in record.passages if p.text not in record.found] if record else []
        room = self.model.context_tokens - 1
        dropped = 0
        prompt = self._encode(messages, request)
        while len(prompt) > room and optional:
            messages = without(messages, optional.pop().text.strip())
            dropped += 1
            prompt = self._encode(messages, request)
        if len(prompt) > room:
            raise ContextTooLong(prompt_tokens=len(prompt), context_tokens=room + 1)
        return prompt, dropped

    def _encode(self, prompt: str | Sequence[Message], request: Request) -> Prompt:
        return self.model.encode(
            prompt,
            chat_template=request.chat_template,
            tools=request.tools,
            answer_start=request.answer_start,
        )

    # 3, 4

    def _open_sequence(self, run: Run, capacity: int) -> RunningSequence:
        if run.request.reuse == "off":
            return self.model.open_sequence(capacity)
        return self.model.open_sequence(capacity, run.prompt.token_ids, namespace=self.residence)

    def _restore(self, run: Run, sequence: RunningSequence) -> Flight | None:
        if self._learner.store.read_only or run.filling is not None or not run.learns:
            self._restorer.restore(run, sequence)
            return None
        flight = self._sharing.restore(run, sequence)
        if flight is None:
            return None
        outcome, _ = self._told(run)
        if not self._learner.keeps(outcome, run.is_conversation):
            flight.land()
            return None
        # Said now: what is handed on will stand in the store when the answer ends.
        run.miss_reason = self._miss_reason(run)
        return flight

    # 5

    def _fill(self, run: Run, sequence: RunningSequence) -> None:
        started, loaded, held = time.perf_counter(), run.load_s, sequence.num_tokens
        if run.filling is not None:
            run.filling.fill(run, sequence, self._drafts(run))
            run.prefill_s += time.perf_counter() - started - (run.load_s - loaded)
        else:
            sequence.prefill(run.prompt.token_ids[held:], self._drafts(run))
            self._restorer.computed(run, time.perf_counter() - started, held, len(run.prompt))

    def _drafts(self, run: Run) -> Drafts | None:
        """Return what the answer may be guessed from: nothing with reuse off."""
        if run.request.reuse == "off":
            return None
        return self._learner.drafts(run.prompt.token_ids, run.record)

    def _decode(self, run: Run, sampling: Sampling, sequence: RunningSequence) -> Iterator[Chunk]:
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
                if not token.is_end and len(tokens) < sampling.max_tokens:
                    run.check_time(len(tokens))
                    self._queue.check()
            rest = scanner.flush()
            if rest:
                text.append(rest)
                yield Chunk(rest)
        except (GeneratorExit, GenerationTimeout, EngineClosing):
            # Nobody reads on, or the time is up; what was computed is kept all the same.
            run.request.tell(self._finish(run, sequence, tokens, started))
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
        self, run: Run, sequence: RunningSequence, tokens: list[Token], started: float
    ) -> Usage:
        usage = _measured(run, tokens, time.perf_counter() - started)
        if run.request.reuse == "off":
            self._learner.count(usage)
            return usage
        if not run.learns:
            return usage
        outcome, reason = self._told(run)
        if run.recomputed and outcome == "partial":
            reason = run.problem or "computed_faster"
        usage = replace(usage, outcome=outcome, reason=reason)
        if run.filling is not None:
            usage = run.filling.told(run, usage)
        answered = Answered(
            prompt=run.prompt,
            answer=tuple(t.id for t in tokens),
            is_conversation=run.is_conversation,
            record=run.record,
            where=run.where,
            usage=usage,
            match=run.match,
            exact_tokens=run.exact_tokens,
            storable_tokens=run.storable_tokens,
            sound=run.sound,
            handed_on=run.handed_on,
            token_bytes=run.token_bytes,
        )
        return replace(usage, stored_tokens=self._learner.after(answered, sequence))

    def _told(self, run: Run) -> tuple[Outcome, Reason]:
        return classify(
            run.prompt,
            run.where,
            run.record,
            reused=run.reused,
            miss=run.problem or self._miss_reason(run),
            grid=self.model.grid_tokens,
        )

    def count(self, usage: Usage) -> None:
        """Count a request that was answered without learning from it."""
        self._learner.count(usage)

    def _miss_reason(self, run: Run) -> Reason:
        if run.recomputed:
            return "computed_faster"
        if run.miss_reason is not None:
            return run.miss_reason
        if run.where.is_question_first:
            return "question_before_context"
        manifest = self._blocks.disk.manifest
        try:
            if not run.reused and manifest.is_empty(self.namespace):
                return "empty_store" if manifest.is_empty() else "other_model"
        except sqlite3.Error:
            return "store_failed"
        if run.record is None:
            return "no_route"
        return "cluster_not_filled" if run.record.route.is_admitted else "not_admitted"


def _measured(run: Run, tokens: Sequence[Token], decode_s: float) -> Usage:
    """Return the counts and times of a run; outcome and reason are those of reuse off."""
    route = run.record.route if run.record else None
    cluster = run.record.cluster if run.record else None
    far = route.distance if route and route.cluster else None
    if route and cluster is not None and cluster is not route.cluster:
        far = distance(route.embedding, cluster.centroid)
    return Usage(
        outcome="bypass",
        reason="reuse_off",
        prompt_tokens=len(run.prompt),
        reused_tokens=run.reused,
        completion_tokens=len(tokens),
        drafted_tokens=sum(t.is_drafted for t in tokens),
        dropped_pins=run.dropped_pins,
        pinned_passages=run.record.num_pins if run.record else 0,
        cluster=cluster.id if cluster is not None else None,
        domain=route.settled_domain if route else None,
        distance=far,
        tier=run.tier,
        loaded_bytes=run.loaded_bytes,
        loaded_levels=tuple(sorted(run.levels)),
        unloaded_tokens=run.recomputed,
        plan=(route.plan or None) if route else None,
        kv_precision=run.kv_precision,
        embed_s=route.embed_s if route else 0.0,
        route_s=route.route_s if route else 0.0,
        load_s=run.load_s,
        prefill_s=run.prefill_s,
        decode_s=decode_s,
        ttft_s=run.ttft_s,
        total_s=time.perf_counter() - run.begin,
    )
