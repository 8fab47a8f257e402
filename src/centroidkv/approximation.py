"""Answering by the representative of a question's cluster: Algorithm 1 of the source paper.

1-3. embed, reduce, nearest centroid   4. M has the cluster: answer from its representative
5. else answer exactly, and let this question stand for the cluster   6. say what happened

Nothing computed on another question's KV is stored.
"""

import time
from collections import Counter
from collections.abc import Iterator
from dataclasses import replace

from centroidkv.errors import ConfigError
from centroidkv.preparing.warm import Invoke, WarmReport
from centroidkv.protocols import Progress
from centroidkv.routing.plan import Plan
from centroidkv.serving.answering import Answering
from centroidkv.serving.representative import Representatives, StandIn
from centroidkv.serving.request import Request, Run
from centroidkv.types import Chunk, Completion, Prompt, Reason, Route, Usage

_REASONS: dict[str, Reason] = {
    "answer": "representative_answer",
    "continue": "representative_kv",
    "append": "representative_appended",
}

__all__ = ["ApproximateAnswering"]


class ApproximateAnswering:
    """Answers requests whose policy is `representative`."""

    def __init__(self, answering: Answering, representatives: Representatives) -> None:
        self._answering = answering
        self._representatives = representatives
        self._config = representatives.config

    def fill(self, plan: Plan | None, invoke: Invoke, progress: Progress) -> WarmReport:
        """Send every cluster's representative through a chain, so that M knows all clusters.

        Raises:
            ConfigError: There is no plan.
        """
        begin = time.perf_counter()
        if plan is None:
            raise ConfigError("there is nothing to warm yet; call build(questions=..., ...) first")
        problems: Counter[str] = Counter()
        filled = 0
        for done, cluster in enumerate(plan.clusters):
            progress("warm", done, len(plan.clusters))
            before = self._representatives.num_kept
            if not cluster.representative:  # forgotten
                continue
            try:
                invoke(cluster.representative)
            except Exception as error:  # noqa: BLE001 - it is the user's chain
                problems[f"the chain raised {type(error).__name__}: {error}"] += 1
            filled += self._representatives.num_kept > before
        progress("warm", len(plan.clusters), len(plan.clusters))
        known = len(plan.clusters) - filled - problems.total()
        seconds = time.perf_counter() - begin
        return WarmReport(len(plan.clusters), filled, known, dict(problems), 0, seconds)

    def stream(self, request: Request) -> Iterator[Chunk]:
        """Answer piece by piece; the last chunk carries the completion."""
        run = self._answering.prepare(request)
        route = self._representatives.route(run.question, run.record)
        key = self._representatives.key(run.prompt, run.where, request.sampling)
        stand_in = self._representatives.find(route, key)
        if stand_in is None:
            yield from self._exact(run, route, key)
        elif not self._may_serve(run, route, stand_in):
            run.miss_reason = "over_error_bound"
            yield from self._answering.run(run)
        elif not self._fits(run, stand_in):
            run.miss_reason = "representative_too_long"
            yield from self._answering.run(run)
        elif self._config.representative_form == "answer":
            yield from self._stored(run, route, stand_in)
        else:
            yield from self._decoded(run, route, stand_in)

    def _may_serve(self, run: Run, route: Route, stand_in: StandIn) -> bool:
        """Tell whether a stand-in keeps the bound that was asked for; without one it always may.

        Raises:
            NotCalibrated: There is a bound and no calibration.
        """
        bound = self._config.max_error
        if bound is None or stand_in.prompt_ids == run.prompt.token_ids:
            return True
        return self._representatives.judge(run.question, stand_in, route, bound)

    def _fits(self, run: Run, stand_in: StandIn) -> bool:
        """Tell whether the model's context holds what is computed, and the answer asked for."""
        is_same = stand_in.prompt_ids == run.prompt.token_ids
        if self._config.representative_form != "append" or is_same:
            return True
        num_tokens = len(stand_in.prompt_ids) + len(run.prompt) + run.request.sampling.max_tokens
        return num_tokens <= self._answering.model.context_tokens

    def _exact(self, run: Run, route: Route, key: str) -> Iterator[Chunk]:
        """Step 5: compute, answer, and keep this question as the cluster's representative."""
        run.miss_reason = "representative_filled"
        for chunk in self._answering.run(run):
            done = chunk.completion
            if done is not None and run.storable_tokens is None:
                kept = StandIn(
                    run.question,
                    run.prompt.token_ids,
                    done.text,
                    done.token_ids,
                    done.finish_reason,
                    tuple(p.text for p in run.record.passages) if run.record else (),
                )
                self._representatives.keep(route, key, kept)
            yield chunk

    def _stored(self, run: Run, route: Route, stand_in: StandIn) -> Iterator[Chunk]:
        """Step 4 with the stored answer: nothing is computed at all."""
        run.ttft_s = time.perf_counter() - run.begin
        usage = Usage(
            outcome="hit",
            reason="representative_answer",
            prompt_tokens=len(run.prompt),
            reused_tokens=len(run.prompt),
            completion_tokens=len(stand_in.answer_ids),
            ttft_s=run.ttft_s,
            total_s=time.perf_counter() - run.begin,
        )
        is_same = stand_in.prompt_ids == run.prompt.token_ids
        done = Completion(
            stand_in.answer,
            stand_in.answer_ids,
            "stop" if stand_in.finish_reason == "stop" else "length",
            self._named(usage, route, stand_in, is_same=is_same),
        )
        if done.text:
            yield Chunk(done.text)
        yield Chunk("", done)

    def _decoded(self, run: Run, route: Route, stand_in: StandIn) -> Iterator[Chunk]:
        """Step 4 with the representative's KV: decode from it, or append this question to it."""
        ids = stand_in.prompt_ids
        # The representative itself asked again: nothing about that is approximate.
        is_same = ids == run.prompt.token_ids
        if self._config.representative_form == "append" and not is_same:
            ids = (*ids, *run.prompt.token_ids)
        run.prompt = Prompt("", ids, (0,) * len(ids))
        run.learns = False
        for chunk in self._answering.run(run):
            done = chunk.completion
            if done is not None:
                done = replace(
                    done, usage=self._named(done.usage, route, stand_in, is_same=is_same)
                )
            yield replace(chunk, completion=done)

    def _named(self, usage: Usage, route: Route, stand_in: StandIn, *, is_same: bool) -> Usage:
        """Say whether the answer is approximate, and whose it is; count the request."""
        usage = replace(
            usage,
            outcome="hit",
            reason=_REASONS[self._config.representative_form],
            cluster=route.cluster.id if route.cluster else None,
            domain=route.settled_domain,
            distance=route.distance,
            embed_s=route.embed_s,
            route_s=route.route_s,
            approximate=not is_same,
            representative=stand_in.question,
            error_bound=0.0 if is_same else self._config.max_error,
            plan=route.plan or None,
        )
        self._answering.count(usage)
        return usage
