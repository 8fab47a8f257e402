"""KVBoost (PyPI `kvboost`): KV reuse in chunks on a transformers model, at its defaults.

Built around the float32 model rather than by its own loader, which takes half precision. It does
not stream, but calls back with every token: the first call is the first token.
"""

import time
from importlib.metadata import version
from typing import Any

from kvboost import KVBoost

from peers.wire import Row, serve
from peers.workers.plain import load

MAX_BYTES = 1 << 30

__all__ = ["Boosted"]


class Boosted:
    """One KVBoost engine."""

    def __init__(self, *, model: str, threads: int, **_: Any) -> None:
        loaded, tokenizer = load(model, threads)
        self.engine = KVBoost(
            model=loaded, tokenizer=tokenizer, device="cpu", max_cache_bytes=MAX_BYTES
        )
        self.versions = {name: version(name) for name in ("kvboost", "transformers", "torch")}

    def op_warm(self, *, text: str, shared: int, **_: Any) -> Row:
        """Encode the context and keep its chunks."""
        started = time.perf_counter()
        self.engine.warm(text[:shared])
        return {"seconds": time.perf_counter() - started}

    def op_ask(self, *, text: str, max_tokens: int, **_: Any) -> Row:
        """Answer a rendered prompt; tokenizing it counts."""
        times: list[float] = []
        started = time.perf_counter()
        done = self.engine.generate(
            text, max_new_tokens=max_tokens, on_token=lambda _: times.append(time.perf_counter())
        )
        ended = time.perf_counter()
        return {
            "ttft_s": (times[0] if times else ended) - started,
            "total_s": ended - started,
            "text": done.output_text,
            "tokens": done.generated_tokens,
            "prompt_tokens": done.prompt_tokens,
            "reused_tokens": done.cached_tokens,
        }


if __name__ == "__main__":
    serve(Boosted)
