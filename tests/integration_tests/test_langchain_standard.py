"""LangChain's own standard tests, none overridden, on the real bundled model."""

from collections.abc import Callable, Iterator
from typing import Any

import pytest
from langchain_core.documents import Document
from langchain_core.embeddings import DeterministicFakeEmbedding
from langchain_core.vectorstores import InMemoryVectorStore
from langchain_tests.integration_tests import ChatModelIntegrationTests, RetrieversIntegrationTests
from langchain_tests.unit_tests import ChatModelUnitTests

from centroidkv import Engine
from centroidkv.langchain import CentroidKVRetriever, ChatCentroidKV
from centroidkv.models.transformers_model import TransformersModel
from small_parts import HashEmbedder


@pytest.fixture(scope="module")
def chat_engine(smollm: TransformersModel, tmp_path_factory) -> Iterator[Engine]:
    folder = tmp_path_factory.mktemp("standard") / "store"
    with Engine.open(folder, model=smollm, embedder=HashEmbedder()) as engine:
        yield engine


class OnTheBundledModel:
    """What both suites are told of the model. It has no tools: its chat template knows none."""

    engine: Engine

    @pytest.fixture(autouse=True)
    def _with_engine(self, chat_engine: Engine) -> None:
        type(self).engine = chat_engine

    @property
    def chat_model_class(self) -> type[ChatCentroidKV]:
        return ChatCentroidKV

    @property
    def chat_model_params(self) -> dict[str, Any]:
        return {"engine": self.engine}

    @property
    def has_tool_calling(self) -> bool:
        return False  # the bundled model's chat template renders no tools

    @property
    def has_structured_output(self) -> bool:
        return False  # LangChain builds it on tools


class TestChatUnit(OnTheBundledModel, ChatModelUnitTests):
    """langchain-tests, unit."""


class TestChatIntegration(OnTheBundledModel, ChatModelIntegrationTests):
    """langchain-tests, integration."""

    @property
    def chat_model_params(self) -> dict[str, Any]:
        return {"engine": self.engine, "max_tokens": 48}


class KRetriever(CentroidKVRetriever):
    """The wrapper with the constructor that the suite calls: `k` goes to the base retriever."""

    def __init__(self, *, engine: Engine, store: InMemoryVectorStore, k: int = 4) -> None:
        super().__init__(engine=engine, base=store.as_retriever(search_kwargs={"k": k}))


class TestRetriever(RetrieversIntegrationTests):
    """langchain-tests, retrievers, on an engine without a plan."""

    opened: Engine

    @pytest.fixture(autouse=True)
    def _with_engine(self, open_engine: Callable[..., Engine]) -> None:
        type(self).opened = open_engine()

    @property
    def retriever_constructor(self) -> type[KRetriever]:
        return KRetriever

    @property
    def retriever_constructor_params(self) -> dict[str, Any]:
        store = InMemoryVectorStore(DeterministicFakeEmbedding(size=8))
        store.add_documents([Document(page_content=f"passage {i}") for i in range(6)])
        return {"engine": self.opened, "store": store}

    @property
    def retriever_query_example(self) -> str:
        return "passage 3"
