"""This package's two ways to serve a kept answer to a paraphrase.

`CentroidKVAnswerCache` in front of `ChatCentroidKV`, called as LangChain calls it, with
`max_distance` and thus uncalibrated; and `reuse="representative"` with
`representative_form="answer"`, the source paper's Algorithm 1. Embedding the question counts.
"""

import os
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch

from centroidkv.langchain import CentroidKVAnswerCache, ChatCentroidKV
from peers.wire import Row, serve
from peers.workers.clock import timed
from peers.workers.ours import Ours

MAX_DISTANCE = 1.1

__all__ = ["Answers"]


class Answers(Ours):
    """An engine that keeps answers. Its settings have `representative_form="answer"`."""

    def __init__(self, **settings: Any) -> None:
        super().__init__(**settings)
        self.cache = CentroidKVAnswerCache(engine=self.engine, max_distance=MAX_DISTANCE)
        self._chats: dict[int, ChatCentroidKV] = {}

    def _chat(self, max_tokens: int) -> ChatCentroidKV:
        if max_tokens not in self._chats:
            chat = ChatCentroidKV(engine=self.engine, max_tokens=max_tokens, cache=self.cache)
            self._chats[max_tokens] = chat
        return self._chats[max_tokens]

    def op_keep(self, *, max_tokens: int, **request: Any) -> Row:
        """Let the model answer a past question; both ways keep the answer."""
        started = time.perf_counter()
        self._chat(max_tokens).invoke(request["user"])
        self._represented(request, max_tokens)
        self.engine.flush()
        return {"seconds": time.perf_counter() - started}

    def op_cached(self, *, user: str, max_tokens: int, **_: Any) -> Row:
        """Answer through LangChain and the answer cache."""
        chat = self._chat(max_tokens)
        started = time.perf_counter()
        message = chat.invoke(user)
        total = time.perf_counter() - started
        note = message.response_metadata.get("centroidkv_cache")
        assert note is not None, "the paraphrase was not served from the answer cache"
        usage = message.usage_metadata or {}
        return {"ttft_s": total, "total_s": total, "text": message.content,
                "served": note["question"], "tokens": usage.get("output_tokens"),
                "prompt_tokens": usage.get("input_tokens")}  # fmt: skip

    def op_representative(self, *, max_tokens: int, **request: Any) -> Row:
        """Answer by the stored answer of the cluster's representative."""
        started = time.perf_counter()
        pieces, times = timed(self._represented(request, max_tokens), started)
        usage = self._done.usage
        assert usage.reason == "representative_answer", usage
        return {**times, "text": "".join(pieces), "served": usage.representative,
                "tokens": usage.completion_tokens, "prompt_tokens": usage.prompt_tokens,
                "reused_tokens": usage.reused_tokens}  # fmt: skip

    def op_per_second(
        self, *, requests: list[dict[str, Any]], max_tokens: int, seconds: float
    ) -> Row:
        """Serve paraphrases one after the other on one core; return answers a second, each way."""
        rates = {}
        with _one_core():
            for name, serve_one in (
                ("cached", self.op_cached),
                ("representative", self.op_representative),
            ):
                started, served = time.perf_counter(), 0
                while time.perf_counter() - started < seconds:
                    serve_one(**requests[served % len(requests)], max_tokens=max_tokens)
                    served += 1
                rates[name] = served / (time.perf_counter() - started)
        return {"answers_per_s": rates}

    def _represented(self, request: Mapping[str, Any], max_tokens: int) -> list[str]:
        self._routed(request)
        options = {"max_tokens": max_tokens, "reuse": "representative"}
        return list(self._pieces(request["user"], options))


@contextmanager
def _one_core() -> Iterator[None]:
    """Keep every thread of this process on one core, and torch to one thread."""
    tasks = [int(name) for name in os.listdir("/proc/self/task")]  # noqa: PTH208 - numbers
    cores, threads = os.sched_getaffinity(0), torch.get_num_threads()
    torch.set_num_threads(1)
    for task in tasks:
        os.sched_setaffinity(task, {min(cores)})
    try:
        yield
    finally:
        for task in tasks:
            os.sched_setaffinity(task, cores)
        torch.set_num_threads(threads)


if __name__ == "__main__":
    serve(Answers)
