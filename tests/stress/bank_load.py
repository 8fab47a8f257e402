"""A load of a small bank: questions in families that share their passages, and cold answers.

A random model of two layers answers, so that thousands of requests fit into a minute.
"""

import hashlib
import random
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from centroidkv import Completion, Engine, Passage
from centroidkv.config import EngineConfig
from centroidkv.models.loading import wrap_model
from centroidkv.models.transformers_model import TransformersModel
from small_parts import HashEmbedder, make_llama, make_tokenizer

TOPICS = ["card", "wire", "loan", "account", "pin", "transfer", "cheque", "saving", "branch",
          "limit", "fee", "currency"]  # fmt: skip
# Of two tokens so near to each other, either may be said: sums in another order round otherwise.
NEAR = 1e-4
NUM_FAMILIES = len(TOPICS)

__all__ = ["Load", "open_engine", "small_model"]


def small_model(arena_budget_bytes: int = 256 << 20) -> TransformersModel:
    """A random Llama with its tokenizer; one a process."""
    return wrap_model(make_llama(), make_tokenizer(), arena_budget_bytes=arena_budget_bytes)


def open_engine(folder: Path, **settings: Any) -> Engine:
    """Open an engine of a small model on a store, as if the model were loaded by name.

    Its idle arenas take a quarter of the memory budget; a model that is handed over has its own.
    """
    config = EngineConfig.of(settings)
    model = small_model(config.arena_budget_bytes)
    return Engine.open(folder, model=model, embedder=HashEmbedder(), **settings)


def passages_of(family: int) -> list[Passage]:
    topic = TOPICS[family]
    return [
        Passage.of(f"{topic} rule {n}: a {topic} is {w} by phone, in the app or at the desk. " * 4)
        for n, w in enumerate(("blocked", "opened"))
    ]


def questions_of(family: int) -> list[str]:
    topic = TOPICS[family]
    return [f"{word} my {topic} {topic} please" for word in ("block", "open", "find", "lose")]


def search(question: str) -> list[Passage]:
    """Find the passages of the family that a question is of."""
    words = question.split()
    return passages_of(next(n for n, topic in enumerate(TOPICS) if topic in words))


@dataclass(frozen=True, slots=True)
class Asked:
    """A request that was answered: right, wrong, or so near to a tie that either will do."""

    completion: Completion
    prompt: str
    is_right: bool
    is_near: bool


class Load:
    """Asks one engine and holds every answer against the one computed without reuse."""

    def __init__(self, engine: Engine, seed: int) -> None:
        self.engine = engine
        self.random = random.Random(seed)
        self._cold: dict[bytes, tuple[tuple[int, ...], tuple[float, ...]]] = {}

    def build(self, num_clusters: int = NUM_FAMILIES) -> None:
        """Make the plan of all families; with another number of clusters it is another version."""
        asked = [q for family in range(NUM_FAMILIES) for q in questions_of(family)]
        self.engine.build(
            questions=asked, retriever=search, num_clusters=num_clusters, max_pins=2, pca_dim=16
        )

    def question(self) -> str:
        """Return a question; some families are asked more often than others."""
        family = min(int(self.random.expovariate(0.25)), NUM_FAMILIES - 1)
        return self.random.choice(questions_of(family))

    def ask(self, question: str, **options: Any) -> Asked:
        """Retrieve, answer, and compare."""
        route = self.engine.route(question)
        passages = self.engine.compose(route, search(question))
        context = "\n\n".join(p.text for p in passages)
        prompt = f"Answer from the context.\n\n{context}\n\nQuestion: {question}"
        done = self.engine.generate(prompt, max_tokens=6, question=question, **options)
        cold, margins = self._without_reuse(prompt)
        differ = [n for n, (a, b) in enumerate(zip(done.token_ids, cold, strict=False)) if a != b]
        is_right = done.token_ids == cold
        is_near = not is_right and bool(differ) and margins[differ[0]] < NEAR
        return Asked(done, prompt, is_right, is_near)

    def _without_reuse(self, prompt: str) -> tuple[tuple[int, ...], tuple[float, ...]]:
        key = hashlib.sha256(prompt.encode()).digest()
        if key not in self._cold:
            if len(self._cold) > 256:  # growing clusters make new prompts
                self._cold.clear()
            done = self.engine.generate(prompt, max_tokens=6, reuse="off")
            self._cold[key] = (done.token_ids, done.margins)
        return self._cold[key]
