"""The spans of a chain's requests stand inside the chain's own, and say nothing of its texts."""

import asyncio
from collections.abc import Callable

import pytest
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter

from centroidkv import Engine
from langchain_parts import ASKED, build_and_warm, chat_chain
from word_bank import search


@pytest.mark.parametrize("way", ["invoke", "stream", "ainvoke", "astream", "batch"])
def test_spans_are_the_chains(open_engine: Callable[..., Engine], way: str) -> None:
    provider, exporter = TracerProvider(), InMemorySpanExporter()
    provider.add_span_processor(SimpleSpanProcessor(exporter))
    engine = open_engine(traces=provider, metrics=True)
    chain = chat_chain(engine)
    build_and_warm(engine, chain.invoke)
    assert exporter.get_finished_spans() == ()  # warming is not observed

    async def drained() -> None:
        async for _ in chain.astream(ASKED):
            pass

    with provider.get_tracer("user").start_as_current_span("chain") as outer:
        if way == "astream":
            asyncio.run(drained())
        elif way == "ainvoke":
            asyncio.run(chain.ainvoke(ASKED))
        elif way == "batch":
            chain.batch([ASKED])
        elif way == "stream":
            list(chain.stream(ASKED))
        else:
            chain.invoke(ASKED)
    found = {span.name: span for span in exporter.get_finished_spans()}
    for name in ("centroidkv.route", "centroidkv.request"):
        assert found[name].parent is not None
        assert found[name].parent.span_id == outer.get_span_context().span_id
    assert found["centroidkv.request"].attributes["centroidkv.outcome"] == "hit"
    seen = "".join(span.to_json() for span in found.values()) + engine.metrics()
    assert ASKED not in seen
    assert not any(p.text in seen for p in search(ASKED))
    provider.shutdown()
