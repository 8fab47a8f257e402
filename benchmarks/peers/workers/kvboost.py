"""KVBoost (PyPI `kvboost`): KV reuse in chunks on a transformers model, at its defaults.

Built around the float32 model rather than by its own loader, which takes half precision. It does
not stream: its first token's time is the one it reports itself, the total is taken here.
"""

import time
from importlib.metadata import version
from typing import Any

from kvboost import KVBoost

from peers.wire import Row, serve
from peers.workers.plain import load

__all__ = ["Boosted"]


class Boosted:
    """One KVBoost engine."""

    def __init__(self, *, model: str, threads: int, **_: Any) -> None:
        loaded, tokenizer = load(model, threads)
        self.engine = KVBoost(model=loaded, tokenizer=tokenizer, device="cpu")
        self.versions = {name: version(name) for name in ("kvboost", "transformers", "torch")}

    def op_warm(self, *, text: str, shared: int, **_: Any) -> Row:
        """Encode the context and keep its chunks."""
        started = time.perf_counter()
        self.engine.warm(text[:shared])
        return {"seconds": time.perf_counter() - started}

    def op_ask(self, *, text: str, max_tokens: int, **_: Any) -> Row:
        """Answer a rendered prompt; tokenizing it counts."""
        started = time.perf_counter()
        done = self.engine.generate(text, max_new_tokens=max_tokens)
        return {
            "ttft_s": done.ttft_ms / 1e3,
            "total_s": time.perf_counter() - started,
            "text": done.output_text,
            "tokens": done.generated_tokens,
            "prompt_tokens": done.prompt_tokens,
            "reused_tokens": done.cached_tokens,
        }


if __name__ == "__main__":
    serve(Boosted)
