"""The ways to answer that are timed, each through the package's own front door.

`plain`: the chain without the package's reuse. `cag`: the paper's baseline as published, one
preloaded context and the question, nothing else. `cag_found`: the same with what the retriever
found behind the context (`preset="cag"` as a user gets it). `exact`: pinned contexts, the
package's default. `answer`, `continue`, `append`: Algorithm 1 (`preset="paper"`), by form of a hit.
"""

import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from centroidkv import Completion, Engine, Passage
from centroidkv.knowledge import KnowledgeBase
from centroidkv.protocols import Embedder
from experiments.corpora import TOP, Corpus, KnownVectors

FORMS = ("answer", "continue", "append")
MAX_TOKENS = 32
DEPTH = 16  # passages that vote for a cluster's pins
MIB = 1 << 20
MEMORY = {"answer": 512 * MIB, "continue": 3072 * MIB, "append": 3072 * MIB}


@dataclass(frozen=True, slots=True)
class Way:
    """One way to answer; `method` is the clustering of Algorithm 1, else empty."""

    name: str
    method: str = ""


class Chain:
    """The retrieval chain that all ways share: find, compose, render, ask.

    `embedder` embeds questions for the retriever; passages are embedded once, by `known`.
    """

    def __init__(self, corpus: Corpus, known: KnownVectors, embedder: Embedder | None = None):
        self.corpus = corpus
        self._library: KnowledgeBase | None = None
        if corpus.passages:
            known.embed([p.text for p in corpus.passages])
            live = _PassagesKnown(known, embedder) if embedder is not None else known
            self._library = KnowledgeBase([Passage(p.id, p.text) for p in corpus.passages], live)

    def find(self, question: str, depth: int = TOP) -> list[Passage]:
        return self._library.search(question, depth) if self._library is not None else []

    def prompt(self, question: str) -> str:
        return self.corpus.prompt(self.find(question), question)

    def stand_in(self, question: str) -> str:
        """Return a text of an answer's length, for what only keeps answers."""
        return " ".join(p.text for p in self.find(question, 1))[:160] or question

    def ask(
        self, engine: Engine, question: str, way: Way, *, max_tokens: int = MAX_TOKENS
    ) -> dict[str, Any]:
        """Answer a question one way; times are those of the whole chain, retrieval included.

        `cpu_s` is the processor time of the whole process: what the answer would take on an idle
        machine with one thread, and hardly more on a busy one.
        """
        started, cpu = time.perf_counter(), time.process_time()
        found = [] if way.name == "cag" else self.find(question)
        if way.name != "plain" and self.corpus.passages:
            found = engine.compose(engine.route(question), found)
        prompt = self.corpus.prompt(found, question)
        first = 0.0
        reuse = {"reuse": "off"} if way.name == "plain" else {}
        done: Completion | None = None
        for chunk in engine.stream(prompt, max_tokens=max_tokens, **reuse):
            first = first or time.perf_counter() - started
            done = chunk.completion
        total, cpu = time.perf_counter() - started, time.process_time() - cpu
        assert done is not None
        usage = done.usage
        told = {k: v for k, v in asdict(usage).items() if k in _TOLD}
        return {"first_s": first, "whole_s": total, "cpu_s": cpu, "text": done.text, **told}


def _fill_pins(engine: Engine, questions: Sequence[str], chain: Chain) -> Iterator[dict[str, Any]]:
    """Store the pins that each question gets, behind which a past question of its cluster stands.

    They are lent by the cluster whose pins hold most of what was found: not always the nearest.
    """
    known: set[tuple[str, ...]] = set()
    for question in questions:
        route = engine.route(question)
        pins = engine.pinned(route, chain.find(question))
        names = tuple(p.id for p in pins)
        if route.cluster is None or not pins or names in known:
            continue
        known.add(names)
        prompt = chain.corpus.prompt(pins, route.cluster.members[0])
        yield {"prompt_tokens": engine.generate(prompt, max_tokens=1).usage.prompt_tokens}
        engine.flush()


_TOLD = {
    "outcome", "reason", "prompt_tokens", "reused_tokens", "completion_tokens", "representative",
    "tier", "embed_s", "route_s", "load_s", "prefill_s", "decode_s",
}  # fmt: skip


class _PassagesKnown:
    """Takes passages' vectors from those known, and embeds questions as a server would."""

    def __init__(self, known: KnownVectors, live: Embedder) -> None:
        self._known = known
        self._live = live
        self.fingerprint = live.fingerprint

    def embed(self, texts: Sequence[str]) -> Any:
        return self._live.embed(texts) if len(texts) == 1 else self._known.embed(texts)


class Ways:
    """The engines of one corpus, one store for each kind; what is there already is kept."""

    def __init__(self, folder: Path, model: Any, embedder: Embedder, names: Sequence[str]) -> None:
        self._folder = folder
        self._stack = ExitStack()
        self._engines: dict[str, Engine] = {}
        for name in names:
            settings: dict[str, Any] = {}
            if name in FORMS:
                settings = {"preset": "paper", "representative_form": name}
                settings["memory_budget_bytes"] = MEMORY[name]
            elif name == "cag":
                settings = {"preset": "cag"}
            opened = Engine.open(folder / name, model=model, embedder=embedder, **settings)
            self._engines[name] = self._stack.enter_context(opened)

    def engine(self, way: Way) -> Engine:
        """Return the engine of a way; each clustering is a tenant of its form's store."""
        name = {"cag_found": "cag", "plain": "exact"}.get(way.name, way.name)
        engine = self._engines[name]
        return engine.for_tenant(way.method) if way.method else engine

    def build(self, way: Way, past: Sequence[str], chain: Chain, **settings: Any) -> float | None:
        """Build the plan of a way, unless it is there; return the seconds."""
        engine = self.engine(way)
        if engine.router.plan is not None:
            return None
        if way.name in FORMS:
            return engine.build(
                questions=past, retriever=lambda _: [], clustering=way.method
            ).seconds
        return engine.build(
            questions=past, retriever=lambda q: chain.find(q, DEPTH), **settings
        ).seconds

    def fill(self, way: Way, questions: Sequence[str], chain: Chain) -> Iterator[dict[str, Any]]:
        """Fill the clusters that these questions go to, as warming would fill all.

        Only those are ever asked for here. What is filled already is brought into memory.
        """
        engine = self.engine(way)
        if way.name == "exact":
            yield from _fill_pins(engine, questions, chain)
            return
        if way.name in ("cag", "cag_found"):
            report = engine.warm(lambda q: chain.ask(engine, q, Way("cag"), max_tokens=1))
            assert report.num_clusters == report.filled + report.already_filled, report
            return
        plan = engine.router.plan
        assert plan is not None
        routes = [engine.route(q) for q in questions]
        for number in sorted({r.cluster.id for r in routes if r.cluster}):
            # A stored answer is kept for the settings it was decoded with.
            length = MAX_TOKENS if way.name == "answer" else 1
            asked = plan.clusters[number].representative
            yield chain.ask(engine, asked, way, max_tokens=length)
            engine.flush()

    def sizes(self, way: Way) -> dict[str, int]:
        """Return what a way's store takes, with what the ways before it have left there.

        `pinned_tokens` are those of all clusters, filled or not; a prefix that two clusters share
        counts twice.
        """
        engine = self.engine(way)
        stats, plan = engine.stats(), engine.router.plan
        pins = [p.text for c in plan.clusters for p in plan.pinned(c)] if plan else []
        return {
            "memory_bytes": stats.memory_bytes,
            "disk_bytes": stats.disk_bytes,
            "answers_bytes": sum(f.stat().st_size for f in self._folder.glob(f"{way.name}/ans*")),
            "num_clusters": len(plan.clusters) if plan else 0,
            "pinned_tokens": sum(map(engine.model.count_tokens, pins)),
        }

    def close(self) -> None:
        self._stack.close()
