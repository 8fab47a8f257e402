"""Harbour Bank's assistant in a terminal, as a LlamaIndex query engine or chat engine.

    python examples/financial_chatbot/llama_index_chat.py "How do I cancel an international wire?"
    python examples/financial_chatbot/llama_index_chat.py --chat     # remembers the conversation

The query engine renders the prompts of the LangChain programs, token for token, and so uses the
KV that they stored. The chat engine puts the context into the system message: its prompts begin
otherwise, and `--chat` warms the store for them as well.
"""

from collections.abc import Iterator
from typing import Any

import bank
import open_bank
from llama_index.core import PromptTemplate, VectorStoreIndex, get_response_synthesizer
from llama_index.core.base.embeddings.base import BaseEmbedding
from llama_index.core.bridge.pydantic import Field, PrivateAttr
from llama_index.core.chat_engine import ContextChatEngine
from llama_index.core.instrumentation import get_dispatcher
from llama_index.core.instrumentation.event_handlers import BaseEventHandler
from llama_index.core.instrumentation.events.llm import LLMChatEndEvent
from llama_index.core.memory import ChatMemoryBuffer
from llama_index.core.postprocessor.types import BaseNodePostprocessor
from llama_index.core.query_engine import RetrieverQueryEngine
from llama_index.core.schema import NodeWithScore, TextNode

from centroidkv import Engine
from centroidkv.llama_index import CentroidKVLLM, CentroidKVPostprocessor

PROMPT = PromptTemplate(
    bank.PROMPT.template.replace("{context}", "{context_str}").replace("{question}", "{query_str}")
)
CONTEXT = "You are the assistant of Harbour Bank. Answer from the context.\n\n{context_str}"
FOUND = 4
HISTORY_TOKENS = 2000


class BankEmbedding(BaseEmbedding):
    """What the index embeds with: the same MiniLM that routes questions."""

    _embedder: Any = PrivateAttr()

    def __init__(self, embedder: Any) -> None:
        super().__init__(model_name="bundled:minilm")
        self._embedder = embedder

    def _get_text_embedding(self, text: str) -> list[float]:
        return self._embedder.embed([text])[0].tolist()

    def _get_query_embedding(self, query: str) -> list[float]:
        return self._get_text_embedding(query)

    async def _aget_query_embedding(self, query: str) -> list[float]:
        return self._get_text_embedding(query)


class TextAlone(BaseNodePostprocessor):
    """Keeps metadata out of the prompt, where LlamaIndex writes it in front of a node's text."""

    def _postprocess_nodes(self, nodes: list[NodeWithScore], *_: Any) -> list[NodeWithScore]:
        for found in nodes:
            found.node.excluded_llm_metadata_keys = list(found.node.metadata)
        return nodes


class LastUsage(BaseEventHandler):
    """Keeps the usage of the latest answer. Query and chat engines end in a chat call."""

    usage: dict[str, Any] = Field(default_factory=dict)

    def handle(self, event: Any, **_: Any) -> None:
        if isinstance(event, LLMChatEndEvent) and event.response is not None:
            self.usage = event.response.raw["usage"]


class BankIndex:
    """The bank's passages in an index, asked through a query engine or a chat engine."""

    def __init__(self, engine: Engine, *, max_tokens: int) -> None:
        nodes = [TextNode(text=d.page_content, metadata=d.metadata) for d in bank.documents()]
        for node in nodes:
            node.excluded_embed_metadata_keys = list(node.metadata)
        self.index = VectorStoreIndex(nodes, embed_model=BankEmbedding(engine.router.embedder))
        self._llm = CentroidKVLLM(engine=engine, max_tokens=max_tokens)
        self._shaping = [CentroidKVPostprocessor(engine=engine), TextAlone()]
        self._last = LastUsage()
        get_dispatcher().add_event_handler(self._last)

    def query_engine(self, *, streaming: bool) -> RetrieverQueryEngine:
        return RetrieverQueryEngine(
            retriever=self.index.as_retriever(similarity_top_k=FOUND),
            response_synthesizer=get_response_synthesizer(
                llm=self._llm, text_qa_template=PROMPT, streaming=streaming
            ),
            node_postprocessors=self._shaping,
        )

    def chat_engine(self) -> ContextChatEngine:
        return ContextChatEngine.from_defaults(
            retriever=self.index.as_retriever(similarity_top_k=FOUND),
            llm=self._llm,
            memory=ChatMemoryBuffer.from_defaults(token_limit=HISTORY_TOKENS),
            node_postprocessors=self._shaping,
            context_template=CONTEXT,
        )

    def answers(self, question: str, stream: Any) -> Iterator[open_bank.Answer]:
        """Yield the growing answer of `stream(question)`; the last one has its usage."""

        def pieces() -> Iterator[str]:
            yield from stream(question).response_gen

        self._last.usage = {}
        for answer in open_bank.timed(question, pieces()):
            answer.usage = self._last.usage
            yield answer


def main() -> None:
    parser = open_bank.arguments(__doc__)
    parser.add_argument("--chat", action="store_true", help="one conversation")
    parser.add_argument("question", nargs="*", help="asked in turn; without any, from a prompt")
    options = parser.parse_args()
    with open_bank.open_engine(options) as engine:
        harbour = BankIndex(engine, max_tokens=options.max_tokens)
        if options.chat:
            stream, invoke = harbour.chat_engine().stream_chat, harbour.chat_engine().chat
        else:
            stream = harbour.query_engine(streaming=True).query
            invoke = harbour.query_engine(streaming=False).query
        deep = harbour.index.as_retriever(similarity_top_k=16)
        open_bank.prepare(engine, options, retriever=deep, invoke=invoke)
        open_bank.converse(lambda question: harbour.answers(question, stream), options.question)


if __name__ == "__main__":
    main()
