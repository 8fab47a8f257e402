"""Response times with the real model, way after way in turn for each unseen question.

One JSON line a request, written at once: a run that was stopped goes on where it was. The first
questions are asked in every way; a way whose hit costs milliseconds is asked more of them, and
the clusterings other than the paper's fewer, since a hit's cost does not depend on how its
cluster was found.
"""

import json
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from experiments.corpora import Corpus, KnownVectors, Split, split
from experiments.sweeps import METHODS, NUM_PAST
from experiments.ways import FORMS, Chain, Way, Ways

# Clusterings timed over each corpus; the others cost the same by construction.
TIMED = {"ask_cfpb": METHODS}


@dataclass(frozen=True, slots=True)
class Sample:
    """How many unseen questions are asked: where a hit takes milliseconds, seconds, or is extra.

    `context_tokens` is the budget of CAG's context, 0 for the preset's own.
    """

    cheap: int = 16
    dear: int = 6
    extra: int = 2
    context_tokens: int = 0

    def size(self, way: Way) -> int:
        if way.method not in ("", "spectral"):
            return self.extra
        return self.cheap if way.name == "answer" else self.dear


def passes(corpus: Corpus) -> list[list[Way]]:
    """Return the ways that are timed over a corpus: those that are compared, then the others."""
    contexts = ["cag", "cag_found", "exact"] if corpus.passages else []
    compared = [Way("plain"), *map(Way, contexts), *(Way(f, "spectral") for f in FORMS)]
    others = [m for m in TIMED.get(corpus.name, ()) if m != "spectral"]
    return [compared, [Way(f, m) for f in FORMS for m in others]] if others else [compared]


class Timing:
    """Times the ways over one corpus. `rows` is the file that requests are appended to."""

    def __init__(self, corpus: Corpus, known: KnownVectors, work: Path, sample: Sample) -> None:
        self.corpus = corpus
        self.sample = sample
        self.rows = work / f"times-{corpus.name}.jsonl"
        self._known = known
        self._folder = work / corpus.name
        self._ways: list[Way] = []

    def run(self, *, num_past: int = NUM_PAST, minutes: float = 60.0) -> bool:
        """Prepare, then ask until all is asked or the time is up; tell whether all is."""
        until = time.monotonic() + minutes * 60
        size = min(num_past, self.corpus.num_past or num_past)
        drawn = split(self.corpus, self._known.embed(self.corpus.questions), seed=0, num_past=size)
        unseen = [self.corpus.questions[i] for i in drawn.unseen[: self.sample.cheap]]
        model: Any = "bundled:smollm2"
        for ways in passes(self.corpus):
            self._ways = ways
            model = self._prepare(drawn, unseen, model, until)
            if model is None or not self._ask(unseen, model, until):
                return False
        return True

    def _prepare(self, drawn: Split, unseen: Sequence[str], model: Any, until: float) -> Any:
        """Build and fill, with vectors that are known; return the model, or None if time is up."""
        chain = Chain(self.corpus, self._known)
        past = [self.corpus.questions[i] for i in drawn.past]
        kept = {(r["way"], r["method"]) for r in self._read("build")}
        opened = self._open(model, self._known)
        try:
            for way in self._ways:
                if time.monotonic() > until:
                    return None
                if (way.name, way.method) in kept or way.name == "plain":
                    continue
                begin = time.perf_counter()
                limits = self._limits(way)
                build_s = opened.build(way, past, chain, **limits)
                asked = unseen[: self.sample.size(way)]
                filled = list(opened.fill(way, asked, chain))
                self._write("build", way, build_s=build_s, fills=len(filled),
                            fill_s=time.perf_counter() - begin - (build_s or 0.0),
                            fill_tokens=sum(f["prompt_tokens"] for f in filled),
                            **opened.sizes(way))  # fmt: skip
            return opened.engine(Way("plain")).model
        finally:
            opened.close()

    def _ask(self, unseen: Sequence[str], model: Any, until: float) -> bool:
        chain = Chain(self.corpus, self._known, self._known.live)
        label_of = dict(zip(self.corpus.questions, self.corpus.labels, strict=True))
        done = {(r["way"], r["method"], r["number"]) for r in self._read("ask")}
        opened = self._open(model, self._known.live)
        try:
            for way in self._ways:
                _touch(opened, way, unseen[: self.sample.size(way)], chain)
            chain.ask(opened.engine(Way("plain")), "What is the weather like?", Way("plain"))
            for number, way in _turns(self._ways, self.sample):
                if (way.name, way.method, number) in done or number >= len(unseen):
                    continue
                if time.monotonic() > until:
                    return False
                question = unseen[number]
                told = chain.ask(opened.engine(way), question, way)
                opened.engine(way).flush()
                stood = told["representative"]
                wrong = bool(stood) and label_of[str(stood)] != label_of[question]
                self._write("ask", way, number=number, question=question, wrong=wrong, **told)
            return True
        finally:
            opened.close()

    def _open(self, model: Any, embedder: Any) -> Ways:
        names = ["exact", *({w.name for w in self._ways} & {"cag", *FORMS})]
        return Ways(self._folder, model, embedder, sorted(names))

    def _limits(self, way: Way) -> dict[str, int]:
        size = self.sample.context_tokens
        return {"max_pin_tokens": size} if size and way.name.startswith("cag") else {}

    def _read(self, kind: str) -> list[dict[str, Any]]:
        return [r for r in read_rows(self.rows) if r["kind"] == kind]

    def _write(self, kind: str, way: Way, **told: Any) -> None:
        row = {"kind": kind, "corpus": self.corpus.name, "way": way.name, "method": way.method}
        self.rows.parent.mkdir(parents=True, exist_ok=True)
        with self.rows.open("a", encoding="utf-8") as file:
            file.write(json.dumps(row | told, ensure_ascii=False) + "\n")


def read_rows(path: Path) -> list[dict[str, Any]]:
    """Read JSON lines; there may be none yet."""
    if not path.exists():
        return []
    return [json.loads(line) for line in path.read_text("utf-8").splitlines()]


def _turns(ways: Sequence[Way], sample: Sample) -> Iterator[tuple[int, Way]]:
    """Yield question by question every way that it is asked in, each time beginning elsewhere."""
    for number in range(sample.cheap):
        asked = [w for w in ways if number < sample.size(w)]
        start = number % max(1, len(asked))
        for way in asked[start:] + asked[:start]:
            yield number, way


def _touch(opened: Ways, way: Way, asked: Sequence[str], chain: Chain) -> None:
    """Bring the KV that hits take into memory, as a server that has run for a while has it."""
    if way.name in ("continue", "append"):
        engine = opened.engine(way)
        plan = engine.router.plan
        assert plan is not None
        for number in sorted({r.cluster.id for q in asked if (r := engine.route(q)).cluster}):
            chain.ask(engine, plan.clusters[number].representative, way, max_tokens=1)
