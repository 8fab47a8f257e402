"""Harbour Bank's assistant in a terminal, as a LangChain chain that reuses KV.

    python examples/financial_chatbot/langchain_chat.py "How do I cancel an international wire?"
    python examples/financial_chatbot/langchain_chat.py        # asks for questions

The first start builds and warms the store, which takes some minutes; later ones take seconds.
"""

from collections.abc import Iterator
from typing import Any

import bank
import open_bank
from langchain_core.callbacks import BaseCallbackHandler
from langchain_core.runnables import Runnable

from centroidkv import Engine
from centroidkv.langchain import CentroidKVLLM, CentroidKVRetriever


class Witness(BaseCallbackHandler):
    """Notes what the retrievers returned and what the model said of its answer."""

    def __init__(self) -> None:
        self.found: list[str] = []
        self.passages: list[str] = []
        self.usage: dict[str, Any] = {}

    def on_retriever_end(self, documents: Any, **_: Any) -> None:
        # The wrapped retriever ends first, then the wrapper.
        self.passages = [d.page_content for d in documents]
        self.found = self.found or self.passages

    def on_llm_end(self, response: Any, **_: Any) -> None:
        self.usage = response.generations[0][0].generation_info["usage"]


class BankChain:
    """The bank's RAG chain over one engine, with and without reuse."""

    def __init__(self, engine: Engine, *, max_tokens: int) -> None:
        self.base = bank.retriever(engine.router.embedder)
        pinned = CentroidKVRetriever(engine=engine, base=self.base)
        llm = CentroidKVLLM(engine=engine, max_tokens=max_tokens)
        self.chain: Runnable[str, str] = bank.chain(pinned, llm)
        self._cold: Runnable[str, str] = bank.chain(pinned, llm.bind(reuse="off"))

    def ask(self, question: str, *, reuse: bool = True) -> Iterator[open_bank.Answer]:
        """Yield the growing answer; the last one has its usage."""
        witness = Witness()
        chain = self.chain if reuse else self._cold
        pieces = chain.stream(question, config={"callbacks": [witness]})
        for answer in open_bank.timed(question, pieces):
            answer.passages, answer.found = witness.passages, witness.found
            answer.usage = witness.usage
            yield answer


def main() -> None:
    parser = open_bank.arguments(__doc__)
    parser.add_argument("question", nargs="*", help="asked in turn; without any, from a prompt")
    options = parser.parse_args()
    with open_bank.open_engine(options) as engine:
        harbour = BankChain(engine, max_tokens=options.max_tokens)
        open_bank.prepare(engine, options, retriever=harbour.base, invoke=harbour.chain.invoke)
        open_bank.converse(harbour.ask, options.question)


if __name__ == "__main__":
    main()
