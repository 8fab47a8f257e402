"""The prompts of a question set under one setting, composed by the product.

A plan is fitted to past questions alone, and nothing is learnt from those asked. Knows nothing of
answers.
"""

import hashlib
import json
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from functools import cached_property
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
from quality_sets import Asked, Fold, QuestionSet

import centroidkv
from centroidkv import Engine, Message
from centroidkv.knowledge import KnowledgeBase
from centroidkv.models.loading import load_model
from centroidkv.protocols import CausalModel, Embedder
from centroidkv.routing.embedder import SentenceBertEmbedder
from centroidkv.serving.outcome import classify, layout
from centroidkv.types import FloatArray, Outcome, Record

TOP = 4


class RememberingEmbedder:
    """An embedder that keeps its vectors in a file, so that no text is embedded twice."""

    def __init__(self, embedder: Embedder, path: Path) -> None:
        self._embedder = embedder
        self._path = path
        self._known: dict[str, FloatArray] = {}
        if path.exists():
            with np.load(path) as kept:
                self._known = dict(zip(kept["keys"].tolist(), kept["vectors"], strict=True))

    @property
    def fingerprint(self) -> str:
        return self._embedder.fingerprint

    def embed(self, texts: Sequence[str]) -> FloatArray:
        keys = [hashlib.sha256(t.encode()).hexdigest() for t in texts]
        new = {k: t for k, t in zip(keys, texts, strict=True) if k not in self._known}
        if new:
            vectors = self._embedder.embed(list(new.values()))
            self._known.update(zip(new, vectors, strict=True))
        return np.stack([self._known[k] for k in keys])

    def save(self) -> None:
        self._path.parent.mkdir(parents=True, exist_ok=True)
        vectors = np.stack(list(self._known.values()))
        np.savez(self._path, keys=np.array(list(self._known)), vectors=vectors)


@dataclass(frozen=True, slots=True)
class Setting:
    """A way to make the prompt: `plan` are the build's settings, None for no pins at all."""

    name: str
    plan: dict[str, Any] | None
    engine: dict[str, Any]


@dataclass(frozen=True, slots=True)
class Asking:
    """One question under one setting. `outcome` is what a warmed store would make of it.

    `reusable_tokens` of the prompt are then in the store.
    """

    asked: Asked
    system: str
    user: str
    prompt: tuple[int, ...]
    outcome: Outcome
    reusable_tokens: int
    has_expected: bool

    @classmethod
    def of(cls, row: dict[str, Any]) -> "Asking":
        """Return what `asdict` took apart."""
        asked = Asked(**{**row["asked"], "expected": tuple(row["asked"]["expected"])})
        return cls(**{**row, "asked": asked, "prompt": tuple(row["prompt"])})


class Composer:
    """Composes the prompts of one question set, and keeps them for the next run.

    What is kept is found again for the same data, setting and sources of the package alone.
    """

    def __init__(self, questions: QuestionSet, folder: Path) -> None:
        self._questions = questions
        self._folder = folder

    def compose(self, setting: Setting) -> list[Asking]:
        """Return one prompt per question, in the order of the folds."""
        named = f"{self._questions.name} {setting} {sources()} {self._questions.passages}"
        path = self._folder / f"answer_quality_{hashlib.sha256(named.encode()).hexdigest()}.json"
        if not path.exists():
            path.parent.mkdir(parents=True, exist_ok=True)
            rows = [asdict(a) for fold in self._questions.folds for a in self._fold(setting, fold)]
            path.write_text(json.dumps(rows), encoding="utf-8")
        return [Asking.of(row) for row in json.loads(path.read_text("utf-8"))]

    @cached_property
    def _model(self) -> CausalModel:
        return load_model("bundled:smollm2")

    @cached_property
    def _embedder(self) -> RememberingEmbedder:
        path = self._folder / "answer_quality_vectors.npz"
        return RememberingEmbedder(SentenceBertEmbedder.load("bundled:minilm"), path)

    @cached_property
    def _base(self) -> KnowledgeBase:
        base = KnowledgeBase(self._questions.passages, self._embedder)
        self._embedder.embed([a.question for fold in self._questions.folds for a in fold.asked])
        self._embedder.save()
        return base

    def _fold(self, setting: Setting, fold: Fold) -> list[Asking]:
        with self._engine(setting, fold) as engine:
            return [self._asking(engine, setting, asked) for asked in fold.asked]

    @contextmanager
    def _engine(self, setting: Setting, fold: Fold) -> Iterator[Engine]:
        with (
            TemporaryDirectory() as folder,
            Engine.open(
                Path(folder) / "store", model=self._model, embedder=self._embedder, **setting.engine
            ) as engine,
        ):
            if setting.plan is not None:
                engine.build(
                    questions=fold.past,
                    retriever=lambda q: self._base.search(q, 16),
                    **setting.plan,
                )
            yield engine

    def _asking(self, engine: Engine, setting: Setting, asked: Asked) -> Asking:
        found = self._base.search(asked.question, TOP)
        record: Record | None = None
        passages = found
        if setting.plan is not None:
            route = engine.route(asked.question)
            passages = engine.compose(route, found)
            num_pins = len(engine.pinned(route, found))
            texts = frozenset(p.text for p in found)
            record = Record(asked.question, route, tuple(passages), num_pins, texts, time.time())
        context = "\n\n".join(p.text for p in passages)
        user = f"Context:\n{context}\n\nQuestion: {asked.question}"
        system = self._questions.system
        prompt = self._model.encode(rendered(system, user))
        where = layout(prompt, record, question=asked.question, user_text=user)
        reusable = where.pins_end or where.head
        outcome, _ = classify(prompt, where, record, reused=reusable, miss="not_admitted")
        has_expected = any(p.text in asked.expected for p in passages)
        return Asking(asked, system, user, prompt.token_ids, outcome, reusable, has_expected)


def rendered(system: str, user: str) -> list[Message]:
    """Return the messages of the command line's prompt, with the system text of a set."""
    return [Message("system", system), Message("user", user)]


def sources() -> str:
    """Return a digest of the package's sources, which compose the prompts."""
    files = sorted(Path(centroidkv.__file__).parent.rglob("*.py"))
    return hashlib.sha256(b"".join(f.read_bytes() for f in files)).hexdigest()
