"""A small store that holds something of everything that a store can hold."""

from pathlib import Path
from typing import Any

from stress_parts import NEW_QUESTIONS, open_engine

from centroidkv.fingerprint import fingerprint
from centroidkv.serving.answers import Answer
from centroidkv.types import Passage
from word_bank import QUESTIONS, ask, search

__all__ = ["fill", "wrong_answers"]


def fill(path: Path, **settings: Any) -> dict[str, str]:
    """Fill a store in two plan versions; return the answers kept in it, by id."""
    kept: dict[str, str] = {}
    with open_engine(path, **settings) as engine:
        for clusters in (3, 2):
            engine.build(
                questions=QUESTIONS, retriever=search, num_clusters=clusters, max_pins=1, pca_dim=8
            )
            engine.warm(lambda q: ask(engine, q))
        for question in NEW_QUESTIONS[:2]:
            text = ask(engine, question).text
            own = fingerprint(question)
            vector = engine.router.embedder.embed([question])[0]
            engine.answers.put(Answer(own, question, text, 0.0), scope="all", vector=vector)
            kept[own] = text
        for question in QUESTIONS[1:5]:
            ask(engine, question, reuse="representative")
        engine.flush()
    return kept


def wrong_answers(path: Path, kept: dict[str, str], **settings: Any) -> list[str]:
    """Say what of a store's answers is wrong: other tokens than computed ones, other texts kept."""
    wrong = []
    with open_engine(path, **settings) as engine:
        for question in [QUESTIONS[0], QUESTIONS[4], NEW_QUESTIONS[1]]:
            done, cold = ask(engine, question), ask(engine, question, reuse="off")
            if done.token_ids != cold.token_ids:
                wrong.append(f"{question}: {done.usage.outcome}, {done.usage.reason}")
        for own, text in kept.items():
            found = engine.answers.get(own)
            if found is not None and found.answer != text:
                wrong.append(f"the kept answer {own[:8]}")
        known = {p.text for q in QUESTIONS for p in search(q)}
        plan, history = engine.router.plan, engine._learner.history
        passages: list[Passage] = list(plan.passages.values()) if plan else []
        if history is not None:
            ids = [p for seen in history.all() for p in seen.passages]
            passages += history.passages(ids).values()
            asked = {*QUESTIONS, *NEW_QUESTIONS}
            strange = [s.question for s in history.all() if s.question not in asked]
            wrong += [f"the question {question!r}" for question in strange]
        wrong += [f"the passage {p.text[:20]!r}" for p in passages if p.text not in known]
    return wrong
