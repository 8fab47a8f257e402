"""A bank of three passages, searched by shared words, and a chain of one function."""

from typing import NamedTuple

from centroidkv import Completion, Engine, Passage
from centroidkv.routing.calibration import LabelledPair

PASSAGES = {
    "card": "A lost card is blocked in the app at once, and a new card arrives in five days. " * 3,
    "wire": "A wire to another country costs twenty dollars and takes two business days. " * 3,
    "loan": "A personal loan can be repaid early for a charge of one month of interest. " * 3,
}
QUESTIONS = [
    "how do I block a lost card",
    "my card is lost what now",
    "lost card please block it",
    "what does a wire to another country cost",
    "cost of a wire to another country",
    "how long does a wire to another country take",
    "can I repay a personal loan early",
    "what is the charge when I repay a loan early",
    "repay my personal loan early",
]

DOMAINS = ["cards"] * 3 + ["transfers"] * 3 + ["loans"] * 3


def search(question: str) -> list[Passage]:
    """Find passages by shared words, all of them, best first."""
    words = set(question.lower().split())
    ranked = sorted(PASSAGES.values(), key=lambda p: (-len(words & set(p.lower().split())), p))
    return [Passage.of(p) for p in ranked]


def ask(engine: Engine, question: str, **options: object) -> Completion:
    """Retrieve, render and answer, as a chain would."""
    passages = engine.compose(engine.route(question), search(question)[:1])
    context = "\n\n".join(p.text for p in passages)
    prompt = f"Answer from the context.\n\n{context}\n\nQuestion: {question}"
    return engine.generate(prompt, max_tokens=12, **options)


def build_and_warm(engine: Engine) -> None:
    """Three clusters with one pinned passage each, filled."""
    engine.build(questions=QUESTIONS, retriever=search, num_clusters=3, max_pins=1, pca_dim=8)
    report = engine.warm(lambda q: ask(engine, q))
    assert report.filled == report.num_clusters > 0, report
    assert report.problems == {}


TOPICS = [
    "block lost card", "wire another country", "repay loan early", "open savings account",
    "change phone number", "order cheque book", "raise credit limit", "close joint account",
]  # fmt: skip
FRAMES = ["{}", "please {}", "how to {}", "can someone {}", "{} today", "{} now thanks"]


def labelled() -> list[LabelledPair]:
    """Wordings of one topic have one answer, those of two topics have not; as many of each."""
    texts = [(t, f.format(t)) for t in TOPICS for f in FRAMES]
    pairs = [
        LabelledPair(a, b, topic == other)
        for i, (topic, a) in enumerate(texts)
        for other, b in texts[i + 1 :]
    ]
    same = [p for p in pairs if p.same_answer]
    return [*same, *[p for p in pairs if not p.same_answer][:: len(pairs) // len(same)]]


class Built(NamedTuple):
    """The ids of a plan of three clusters and of a later one of two, which is in force."""

    first: str
    second: str


def build_twice(engine: Engine) -> Built:
    """Two plan versions, both filled."""
    build_and_warm(engine)
    assert engine.router.plan is not None
    first = engine.router.plan.id
    engine.build(questions=QUESTIONS, retriever=search, num_clusters=2, max_pins=1, pca_dim=8)
    engine.warm(lambda q: ask(engine, q))
    return Built(first, engine.router.plan.id)
