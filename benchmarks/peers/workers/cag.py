"""CAG as published: the context's KV in a DynamicCache in memory, cropped after each answer.

Cache-augmented generation (arXiv 2412.15605), `kvcache.py` of its repository: the context is
prefilled once, a question's tokens follow it, the cache is cut back afterwards. One context at a
time. No retrieval, so no embedding either.
"""

import time
from typing import Any

import torch
import transformers

from peers.wire import Row, serve
from peers.workers.clock import timed
from peers.workers.plain import greedy, load

__all__ = ["Cag"]


class Cag:
    """One context, preloaded."""

    def __init__(self, *, model: str, threads: int, **_: Any) -> None:
        self.model, self.tokenizer = load(model, threads)
        self.versions = {"torch": torch.__version__, "transformers": transformers.__version__}
        self._shared = ""
        self._length = 0
        self._cache: Any = transformers.DynamicCache()

    def op_warm(self, *, text: str, shared: int, **_: Any) -> Row:
        """Prefill the context: the first `shared` characters of a rendered prompt."""
        started = time.perf_counter()
        if text[:shared] != self._shared:
            self._shared, self._length = text[:shared], 0
            self._cache = transformers.DynamicCache()
            if shared:
                ids = self._ids(self._shared)
                self._length = ids.shape[1]
                with torch.inference_mode():
                    self.model(input_ids=ids, past_key_values=self._cache, logits_to_keep=1)
        return {"seconds": time.perf_counter() - started}

    def op_ask(self, *, text: str, shared: int, max_tokens: int, **_: Any) -> Row:
        """Answer what follows the context; cropping comes after the clock, and is told apart."""
        assert text[:shared] == self._shared, "this context is not the one that is loaded"
        started = time.perf_counter()
        ids = self._ids(text[shared:])
        tokens, times = timed(greedy(self.model, ids, self._cache, max_tokens), started)
        ended = time.perf_counter()
        self._cache.crop(self._length - self._cache.get_seq_length())
        return {
            **times,
            "after_s": time.perf_counter() - ended,
            "text": self.tokenizer.decode(tokens, skip_special_tokens=True),
            "tokens": len(tokens),
            "prompt_tokens": self._length + ids.shape[1],
            "reused_tokens": self._length,
        }

    def _ids(self, text: str) -> torch.Tensor:
        ids: torch.Tensor = self.tokenizer(
            text, add_special_tokens=False, return_tensors="pt"
        ).input_ids
        return ids


if __name__ == "__main__":
    serve(Cag)
