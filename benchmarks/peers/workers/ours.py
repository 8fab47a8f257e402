"""This package, through its own front door: route, compose, stream.

A request's time has everything a user waits for: embedding and routing the question, rendering
and tokenizing the prompt, matching, loading, prefill. What is behind the answer (writing) is
waited for after the clock and told apart.
"""

import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
import transformers

import centroidkv
from centroidkv import Engine
from centroidkv.models.arena import Arena
from centroidkv.types import Passage
from peers.wire import Row, serve
from peers.workers.clock import timed

__all__ = ["Ours"]


class Ours:
    """One engine over a store whose plan is there already.

    Args:
        model: The model folder.
        threads: Of torch.
        store: The store folder.
        settings: Of `Engine.open`.
    """

    def __init__(
        self, *, model: str, threads: int, store: str, settings: Mapping[str, Any], **_: Any
    ) -> None:
        torch.set_num_threads(threads)
        self.engine = Engine.open(Path(store), model=model, **settings)
        self.versions = {
            "centroidkv": centroidkv.__version__,
            "torch": torch.__version__,
            "transformers": transformers.__version__,
        }
        self._filled: tuple[str, Arena] | None = None

    def op_warm(self, **request: Any) -> Row:
        """Prefill and store a prompt, answering one token; until it is on disk."""
        started = time.perf_counter()
        self._routed(request)
        self.engine.generate(request["user"], max_tokens=1)
        self.engine.flush()
        return {"seconds": time.perf_counter() - started}

    def op_ask(self, *, max_tokens: int, reuse: str = "exact", **request: Any) -> Row:
        """Answer one question; with reuse off it is neither embedded nor routed."""
        options: Any = {"max_tokens": max_tokens, "reuse": reuse}
        started = time.perf_counter()
        as_asked = reuse == "off" or self._routed(request)
        chunks, times = timed(self._pieces(request["user"], options), started)
        usage = self._done.usage
        ended = time.perf_counter()
        self.engine.flush()
        return {
            **times,
            "after_s": time.perf_counter() - ended,
            "text": "".join(chunks),
            "tokens": usage.completion_tokens,
            "prompt_tokens": usage.prompt_tokens,
            "reused_tokens": usage.reused_tokens,
            "drafted_tokens": usage.drafted_tokens,
            "outcome": usage.outcome,
            "reason": usage.reason,
            "tier": usage.tier,
            "embed_s": usage.embed_s,
            "route_s": usage.route_s,
            "load_s": usage.load_s,
            "prefill_s": usage.prefill_s,
            "is_composed_as_asked": as_asked,
        }

    def _pieces(self, user: Any, options: Any) -> Any:
        for chunk in self.engine.stream(user, **options):
            if chunk.completion is not None:
                self._done = chunk.completion
            yield chunk.text

    def _routed(self, request: Mapping[str, Any]) -> bool:
        """Route a question and note what was found; tell whether the prompt would be the same."""
        if not request["found"]:
            return True
        route = self.engine.route(request["question"])
        found = [Passage.of(text) for text in request["found"]]
        return [p.text for p in self.engine.compose(route, found)] == request["passages"]

    def op_bare(self, *, user: str, question: str, text: str, shared: int, **_: Any) -> Row:
        """Run the least that a hit could cost: embed the question, run the new tokens, no more.

        The prefix's KV is in an arena before the clock starts, and the tokens are ready.
        """
        engine: Any = self.engine
        model = engine.model
        prompt = model.encode(user)
        assert prompt.text == text, "the prompt is rendered otherwise here"
        old = prompt.tokens_before(shared)
        if self._filled is None or self._filled[0] != text[:shared]:
            arena = Arena(model.shape, old + 512)
            model.forward(prompt.token_ids[:old], arena)
            self._filled = (text[:shared], arena)
        arena = self._filled[1]
        arena.resize(old)
        new = torch.tensor([prompt.token_ids[old:]])
        last = {"use_cache": True, "logits_to_keep": 1}
        with torch.inference_mode():
            started = time.perf_counter()
            engine.router.embedder.embed([question])
            embed_s = time.perf_counter() - started
            model.model(input_ids=new, past_key_values=arena.cache, **last)
            total = time.perf_counter() - started
        return {"ttft_s": total, "total_s": total, "embed_s": embed_s, "tokens": 1,
                "prompt_tokens": len(prompt), "reused_tokens": old}  # fmt: skip

    def op_sizes(self) -> Row:
        """Return what the store takes."""
        stats = self.engine.stats()
        return {"memory_bytes": stats.memory_bytes, "disk_bytes": stats.disk_bytes}

    def close(self) -> None:
        self.engine.close()


if __name__ == "__main__":
    serve(Ours)
