"""`langchain-huggingface`'s HuggingFacePipeline in a chain, with LangChain's InMemoryCache or none.

The chain is `prompt template | model`. Streamed for the first token, since a cache is skipped
when streaming; what the cache gives is asked for with `invoke`. Its streamer holds a word back
until the next one begins, so the first piece of text is later than the first token.
"""

import time
from importlib.metadata import version
from typing import Any

from langchain_core.caches import InMemoryCache
from langchain_core.outputs import Generation
from langchain_core.prompts import PromptTemplate
from langchain_huggingface import HuggingFacePipeline
from transformers import pipeline

from peers.wire import Row, serve
from peers.workers.clock import timed
from peers.workers.plain import load

__all__ = ["Pipeline"]


class Pipeline:
    """The chain a user of LangChain has."""

    def __init__(self, *, model: str, threads: int, **_: Any) -> None:
        loaded, self.tokenizer = load(model, threads)
        names = ("langchain-core", "langchain-huggingface", "transformers", "torch")
        self.versions = {name: version(name) for name in names}
        # Sampling settings of the model's own would otherwise be warned of at each call.
        loaded.generation_config.do_sample = False
        loaded.generation_config.temperature = loaded.generation_config.top_p = None
        self._model = loaded
        self._chains: dict[tuple[int, bool], Any] = {}

    def _chain(self, max_tokens: int, *, cached: bool) -> Any:
        key = (max_tokens, cached)
        if key not in self._chains:
            # Settings go to the pipeline: those of HuggingFacePipeline do not reach a stream.
            made: Any = pipeline(
                "text-generation", model=self._model, tokenizer=self.tokenizer,
                max_new_tokens=max_tokens, return_full_text=False, add_special_tokens=False,
            )  # fmt: skip
            llm = HuggingFacePipeline(pipeline=made, cache=InMemoryCache() if cached else False)
            self._chains[key] = PromptTemplate.from_template("{text}") | llm
        return self._chains[key]

    def op_ask(self, *, text: str, max_tokens: int, **_: Any) -> Row:
        """Answer without a cache of answers."""
        chain = self._chain(max_tokens, cached=False)
        started = time.perf_counter()
        pieces, times = timed(chain.stream({"text": text}), started)
        return {**times, **self._told(text, "".join(pieces))}

    def op_again(self, *, text: str, max_tokens: int, **_: Any) -> Row:
        """Answer from InMemoryCache, after it has been asked the same thing once."""
        chain = self._chain(max_tokens, cached=True)
        chain.invoke({"text": text})
        started = time.perf_counter()
        answer = chain.invoke({"text": text})
        seconds = time.perf_counter() - started
        return {"ttft_s": seconds, "total_s": seconds, **self._told(text, answer)}

    def op_paraphrase(self, *, kept: str, text: str, **_: Any) -> Row:
        """Tell whether the cache serves a paraphrase of a prompt that it has an answer to."""
        cache = InMemoryCache()
        cache.update(kept, "settings", [Generation(text="an answer")])
        assert cache.lookup(kept, "settings"), "the cache did not keep what it was given"
        return {"is_served": bool(cache.lookup(text, "settings"))}

    def _told(self, text: str, answer: str) -> Row:
        count = [len(self.tokenizer(t, add_special_tokens=False).input_ids) for t in (text, answer)]
        return {
            "text": answer, "tokens": count[1], "prompt_tokens": count[0], "reused_tokens": 0,
        }  # fmt: skip


if __name__ == "__main__":
    serve(Pipeline)
