"""The prompts of a question set under one setting, composed by the product.

A plan is fitted to past questions alone, and nothing is learnt from those asked. Knows nothing of
answers.
"""

import hashlib
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
from quality_sets import Asked, Fold, QuestionSet

from centroidkv import Engine, Message, Passage
from centroidkv.knowledge import KnowledgeBase
from centroidkv.outcome import classify, layout
from centroidkv.protocols import CausalModel, Embedder
from centroidkv.types import FloatArray, Outcome, Prompt, Record

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
    """A way to make the prompt: `plan` are the build's settings, None for no pins at all.

    `arrange` orders the composed passages anew; it is given these and those found.
    """

    name: str
    plan: dict[str, Any] | None
    engine: dict[str, Any]
    arrange: Callable[[list[Passage], list[Passage]], list[Passage]] | None = None


@dataclass(frozen=True, slots=True)
class Asking:
    """One question under one setting. `outcome` is what a warmed store would make of it.

    `reusable_tokens` of the prompt are then in the store.
    """

    asked: Asked
    prompt: Prompt
    messages: tuple[Message, ...]
    outcome: Outcome
    reusable_tokens: int
    has_expected: bool


class Composer:
    """Composes the prompts of one question set."""

    def __init__(self, questions: QuestionSet, model: CausalModel, embedder: Embedder) -> None:
        self._questions = questions
        self._model = model
        self._embedder = embedder
        self._base = KnowledgeBase(questions.passages, embedder)
        embedder.embed([a.question for fold in questions.folds for a in fold.asked])

    def compose(self, setting: Setting, *, limit: int | None = None) -> list[Asking]:
        """Compose the prompts of a setting, of the first `limit` questions of each fold."""
        done: list[Asking] = []
        for fold in self._questions.folds:
            with self._engine(setting, fold) as engine:
                done += [self._asking(engine, setting, a) for a in fold.asked[:limit]]
        return done

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
        if setting.arrange is not None:
            passages = setting.arrange(passages, found)
        messages = self._render(passages, asked.question)
        prompt = self._model.encode(messages)
        where = layout(prompt, record, question=asked.question, user_text=messages[-1].content)
        reusable = where.pins_end or where.head
        outcome, _ = classify(prompt, where, record, reused=reusable, miss="not_admitted")
        has_expected = any(p.text in asked.expected for p in passages)
        return Asking(asked, prompt, messages, outcome, reusable, has_expected)

    def _render(self, passages: Sequence[Passage], question: str) -> tuple[Message, ...]:
        """Render the command line's prompt, with the system text of the set."""
        context = "\n\n".join(p.text for p in passages)
        return (
            Message("system", self._questions.system),
            Message("user", f"Context:\n{context}\n\nQuestion: {question}"),
        )
