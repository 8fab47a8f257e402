"""transformers as it comes: the whole prompt is computed for every question."""

import time
from collections.abc import Iterator
from typing import Any

import torch
import transformers
from transformers import AutoModelForCausalLM, AutoTokenizer

from peers.wire import Row, serve
from peers.workers.clock import timed

__all__ = ["Plain", "greedy", "load"]


def load(model: str, threads: int) -> tuple[Any, Any]:
    """Load a model folder in float32 and its tokenizer."""
    torch.set_num_threads(threads)
    loaded = AutoModelForCausalLM.from_pretrained(model, dtype=torch.float32)
    return loaded.eval(), AutoTokenizer.from_pretrained(model)


@torch.inference_mode()
def greedy(model: Any, ids: torch.Tensor, cache: Any, max_tokens: int) -> Iterator[int]:
    """Decode greedily behind a cache, as CAG's published loop does; `ids` has shape [1, new].

    The last token is not run: nothing follows it.
    """
    ends = model.generation_config.eos_token_id
    ends = set(ends if isinstance(ends, list) else [ends])
    for _ in range(max_tokens):
        done = model(input_ids=ids, past_key_values=cache, use_cache=True, logits_to_keep=1)
        ids = done.logits[:, -1].argmax(-1, keepdim=True)
        if int(ids) in ends:
            return
        yield int(ids)


class Plain:
    """No reuse at all."""

    def __init__(self, *, model: str, threads: int, **_: Any) -> None:
        self.model, self.tokenizer = load(model, threads)
        self.versions = {"torch": torch.__version__, "transformers": transformers.__version__}

    def op_ask(self, *, text: str, max_tokens: int, **_: Any) -> Row:
        """Answer a rendered prompt; tokenizing it counts."""
        started = time.perf_counter()
        ids = self.tokenizer(text, add_special_tokens=False, return_tensors="pt").input_ids
        cache = transformers.DynamicCache()
        tokens, times = timed(greedy(self.model, ids, cache, max_tokens), started)
        return {
            **times,
            "text": self.tokenizer.decode(tokens, skip_special_tokens=True),
            "tokens": len(tokens),
            "prompt_tokens": ids.shape[1],
            "reused_tokens": 0,
        }


if __name__ == "__main__":
    serve(Plain)
