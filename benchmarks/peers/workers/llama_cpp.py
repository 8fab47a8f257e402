"""llama-cpp-python: the GGUF file (Q4_1), with the prefix that its last call left.

`Llama.create_completion` keeps the KV of the last sequence and computes only what differs; for
several contexts in turn its `LlamaRAMCache` keeps whole states. Both are as documented, at their
defaults. Not the same precision as the float32 peers: its answers may differ.
"""

import time
from typing import Any

import llama_cpp

from peers.wire import Row, serve
from peers.workers.clock import timed

__all__ = ["LlamaCpp"]


class LlamaCpp:
    """One llama.cpp context."""

    def __init__(
        self, *, gguf: str, threads: int, states: bool = False, context_tokens: int = 8192, **_: Any
    ) -> None:
        self.llama = llama_cpp.Llama(
            gguf, n_ctx=context_tokens, n_threads=threads, n_threads_batch=threads, verbose=False
        )
        if states:
            self.llama.set_cache(llama_cpp.LlamaRAMCache(capacity_bytes=1 << 30))
        self.versions = {"llama-cpp-python": llama_cpp.__version__}

    def op_warm(self, *, text: str, **_: Any) -> Row:
        """Answer one token, which leaves the prompt's KV."""
        started = time.perf_counter()
        self._complete(text, 1)
        return {"seconds": time.perf_counter() - started}

    def op_ask(self, *, text: str, max_tokens: int, **_: Any) -> Row:
        """Answer a rendered prompt; tokenizing it counts."""
        started = time.perf_counter()
        pieces, times = timed(self._streamed(text, max_tokens), started)
        answer = "".join(pieces)
        prompt = self.llama.tokenize(text.encode(), add_bos=False, special=True)
        return {**times, "text": answer, "prompt_tokens": len(prompt),
                "tokens": len([p for p in pieces if p])}  # fmt: skip

    def _streamed(self, text: str, max_tokens: int) -> Any:
        for piece in self._complete(text, max_tokens, stream=True):
            yield piece["choices"][0]["text"]

    def _complete(self, text: str, max_tokens: int, *, stream: bool = False) -> Any:
        ids = self.llama.tokenize(text.encode(), add_bos=False, special=True)
        return self.llama.create_completion(
            ids, max_tokens=max_tokens, temperature=0.0, repeat_penalty=1.0, stream=stream
        )


if __name__ == "__main__":
    serve(LlamaCpp)
