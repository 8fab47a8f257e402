"""A retriever wrapper: routes the question and puts its cluster's pinned passages first."""

import asyncio
from typing import Any, TypeAlias

from langchain_core.callbacks import (
    AsyncCallbackManagerForRetrieverRun,
    CallbackManagerForRetrieverRun,
)
from langchain_core.documents import Document
from langchain_core.retrievers import BaseRetriever
from pydantic import ConfigDict, Field

from centroidkv.engine import Engine
from centroidkv.errors import ConfigError
from centroidkv.langchain.settings import DOMAIN_KEY, TENANT_KEY
from centroidkv.retrieval import as_passage
from centroidkv.types import Passage, Route

RunManager: TypeAlias = CallbackManagerForRetrieverRun | AsyncCallbackManagerForRetrieverRun

__all__ = ["CentroidKVRetriever"]


class CentroidKVRetriever(BaseRetriever):
    """Wraps any retriever; what it finds is kept, behind the cluster's pinned passages.

    Of documents of equal text the first is kept, with its metadata, and the others are left out. A
    pin that was not found has no `id`, and the metadata of all pins is plain JSON. A question
    outside every cluster gets what the base retriever finds, in its order. Further
    arguments of `invoke`, such as `k`, go to the base retriever. A tenant named in the config's
    metadata (`centroidkv_tenant`) is routed by that tenant's plan. A domain named there
    (`centroidkv_domain`), else the retriever's own `domain`, keeps to the clusters that serve it.
    """

    model_config = ConfigDict(extra="forbid", arbitrary_types_allowed=True)

    engine: Engine = Field(exclude=True, repr=False)
    base: BaseRetriever
    domain: str | None = None

    def _get_relevant_documents(
        self, query: str, *, run_manager: CallbackManagerForRetrieverRun, **kwargs: Any
    ) -> list[Document]:
        engine, route = self._routed(query, run_manager)
        found: list[Document] = []
        if not engine.is_warming:
            found = self.base.invoke(query, {"callbacks": run_manager.get_child()}, **kwargs)
        return _composed(engine, route, found)

    async def _aget_relevant_documents(
        self, query: str, *, run_manager: AsyncCallbackManagerForRetrieverRun, **kwargs: Any
    ) -> list[Document]:
        engine, route = await asyncio.to_thread(self._routed, query, run_manager)
        found: list[Document] = []
        if not engine.is_warming:
            callbacks = run_manager.get_child()
            found = await self.base.ainvoke(query, {"callbacks": callbacks}, **kwargs)
        return await asyncio.to_thread(_composed, engine, route, found)

    def _routed(self, query: str, run_manager: RunManager) -> tuple[Engine, Route]:
        """Return the engine of the request's tenant, which may be opened now, and the route."""
        said = run_manager.metadata or {}
        tenant, domain = said.get(TENANT_KEY), said.get(DOMAIN_KEY)
        engine = self.engine if tenant is None else self.engine.for_tenant(tenant)
        return engine, engine.route(query, domain=self.domain if domain is None else domain)


def _composed(engine: Engine, route: Route, found: list[Document]) -> list[Document]:
    if not isinstance(found, list) or not all(isinstance(d, Document) for d in found):
        raise ConfigError(f"the retriever returned {found!r:.80}; expected a list of documents")
    known: dict[str, tuple[Passage, Document]] = {}
    for document in found:
        passage = as_passage(document)
        known.setdefault(passage.text, (passage, document))
    passages = engine.compose(route, [passage for passage, _ in known.values()])
    return [_document(p, known.get(p.text)) for p in passages]


def _document(passage: Passage, found: tuple[Passage, Document] | None) -> Document:
    """Return a passage as what was found; of a pin, with the metadata that it always has."""
    if found is None:
        return Document(page_content=passage.text, metadata=dict(passage.metadata))
    own, document = found
    if passage is own or passage.id != own.id:
        return document
    return document.model_copy(update={"metadata": dict(passage.metadata)})
