"""What is asked: requests with rendered prompts, the same for every peer.

A request is a dict of JSON values: `question`, `found` (what the retriever returned), `passages`
(what stands in the prompt, pins first), `user` (the user's message), `text` (the prompt as the
chat template renders it), `shared` (how many of its characters are context that other questions
share) and `context`, the name of that context. Retrieval is done here, outside every clock.
"""

import json
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import bank
import numpy as np
from experiments.corpora import PROMPT, Corpus, KnownVectors, banking77, example_bank

from centroidkv import Engine, Passage
from centroidkv.knowledge import KnowledgeBase
from centroidkv.opening import as_messages
from centroidkv.routing.embedder import SentenceBertEmbedder

Request = dict[str, Any]

CONTEXT_TOKENS = 1960  # of the one context of the table
SHORT_TOKENS = 220
PAIRS = 6
TURNS = 4
SCALE = 8  # the trace's blocks of 512 tokens become blocks of 64
PIECE_TOKENS = 512 // SCALE
LONGEST_TRACE = 16  # blocks
NEXT = "What comes next?"
# Answers shall be long enough that all of them are cut at the same length.
LONG = PROMPT.replace("in one or two sentences", "step by step and in detail")

__all__ = ["WORKLOADS", "Request", "Workload", "make"]


@dataclass(slots=True)
class Workload:
    """Requests in the order they are asked.

    `wake` has nothing in common with the others and is asked first, since first calls are slow.
    `warm` is asked of every peer that can keep something, before the clock. `misses` share no
    prefix with anything, `short` are prompts of some 250 tokens, `pairs` are two questions that
    one answer serves: the first is kept, the second asked. `plain` are the prompts of the same
    questions with what was found and nothing pinned.
    """

    name: str
    requests: list[Request]
    max_tokens: int = 32
    wake: Request = field(default_factory=dict)
    warm: list[Request] = field(default_factory=list)
    misses: list[Request] = field(default_factory=list)
    short: list[Request] = field(default_factory=list)
    pairs: list[tuple[Request, Request]] = field(default_factory=list)
    plain: list[Request] = field(default_factory=list)


class Kitchen:
    """What prompts are made with: the model's tokenizer and template, and a store for plans."""

    def __init__(self, engine: Engine, data: Path, context_tokens: int) -> None:
        self.engine = engine
        self.data = data
        self.context_tokens = context_tokens

    def request(
        self,
        question: str,
        passages: Sequence[str],
        *,
        context: str,
        found: Sequence[str] = (),
        template: str = PROMPT,
    ) -> Request:
        """Render a prompt whose shared part ends with the passages."""
        user = template.format(context="\n\n".join(passages), question=question)
        text = self.engine.model.encode(user).text
        end = text.index(passages[-1]) + len(passages[-1]) if passages else 0
        return {"question": question, "found": list(found), "passages": list(passages),
                "user": user, "text": text, "shared": end, "context": context}  # fmt: skip

    def up_to(self, texts: Sequence[str], tokens: int) -> list[str]:
        """Take leading texts that have at most so many tokens in all."""
        taken: list[str] = []
        for text in texts:
            if self.engine.model.count_tokens("\n\n".join([*taken, text])) > tokens:
                break
            taken.append(text)
        return taken


def table(kitchen: Kitchen, count: int) -> Workload:
    """One context of about 2,000 tokens that all clusters pin, and questions never asked before."""
    corpus = example_bank(kitchen.engine.router.embedder)
    texts = [p.text for p in corpus.passages]
    context = kitchen.up_to(texts, kitchen.context_tokens)
    past = list(corpus.questions[: corpus.num_past])
    engine = kitchen.engine
    engine.build(
        questions=past, retriever=lambda _: [Passage.of(t) for t in context],
        num_clusters=bank.NUM_CLUSTERS, max_pins=len(context),
        max_pin_tokens=2 * kitchen.context_tokens, retrieval_depth=len(context),
        radius_quantile=None,
    )  # fmt: skip

    def asked(question: str) -> Request:
        found = [Passage.of(t) for t in context]
        passages = [p.text for p in engine.compose(engine.route(question), found)]
        return kitchen.request(
            question, passages, context="one", found=context, template=LONG
        )  # fmt: skip

    pairs = [(asked(a), asked(b)) for a, b in _paraphrases(corpus, kitchen, min(PAIRS, count))]
    kept = {second["question"] for _, second in pairs}
    unseen = [q for q in corpus.questions[corpus.num_past :] if q not in kept][: count + 1]
    requests = [asked(q) for q in unseen]
    misses = [_stranger(kitchen, n, r) for n, r in enumerate(requests)]
    few = kitchen.up_to(texts, SHORT_TOKENS)
    short = [kitchen.request(unseen[0], few, context="short", template=LONG)]
    # The first question is the one that everybody prepares with.
    return Workload(
        "table", requests[1:], warm=requests[:1], misses=misses, short=short, pairs=pairs
    )


def _paraphrases(corpus: Corpus, kitchen: Kitchen, most: int) -> list[tuple[str, str]]:
    """Return (past, unseen) questions that one passage answers and one cluster takes.

    Of all such pairs, the nearest; none of them is the same question written alike.
    """
    route = kitchen.engine.route
    past, unseen = corpus.questions[: corpus.num_past], corpus.questions[corpus.num_past :]
    labels = np.array(corpus.labels)
    embed = kitchen.engine.router.embedder.embed
    near = np.asarray(embed(unseen) @ embed(past).T)
    near[labels[corpus.num_past :, None] != labels[None, : corpus.num_past]] = -1
    best, pairs = near.argmax(1), []
    for i in near.max(1).argsort()[::-1]:
        one, other = past[best[i]], unseen[i]
        clusters = [route(q).cluster for q in (one, other)]
        if one.lower() != other.lower() and clusters[0] is clusters[1]:
            pairs.append((one, other))
        if len(pairs) == most:
            break
    return pairs


def _stranger(kitchen: Kitchen, number: int, request: Request) -> Request:
    """Return a prompt that differs from all others within its first tokens."""
    system = {"role": "system", "content": f"{number} is the number of this customer."}
    user = [system, {"role": "user", "content": request["user"]}]
    return _given(kitchen, user, "", f"miss {number}")


def tatqa(kitchen: Kitchen, count: int) -> Workload:
    """One context, six questions: documents of TAT-QA dev, asked one after the other."""
    documents = json.loads((kitchen.data / "tatqa/dev.json").read_text("utf-8"))
    requests = []
    for number in np.random.default_rng(0).permutation(len(documents))[:count]:
        document = documents[number]
        passages = [p["text"] for p in document["paragraphs"]]
        rows = [" | ".join(map(str, row)) for row in document["table"]["table"]]
        passages.append("\n".join(rows))
        for asked in document["questions"]:
            made = kitchen.request(
                asked["question"], passages, context=str(document["table"]["uid"])
            )
            requests.append(made)
    return Workload("tatqa", requests)


def cfpb(kitchen: Kitchen, count: int) -> Workload:
    """A retrieval chain over Ask-CFPB, asked BANKING77's questions, with pinned passages."""
    return _chain(kitchen, banking77(kitchen.data, "ask_cfpb"), "cfpb", count)


def example(kitchen: Kitchen, count: int) -> Workload:
    """The same over the example bank."""
    return _chain(kitchen, example_bank(kitchen.engine.router.embedder), "bank", count)


def _chain(
    kitchen: Kitchen, corpus: Corpus, name: str, count: int, num_past: int = 600
) -> Workload:
    random = np.random.default_rng(0)
    last = corpus.num_past or len(corpus.questions) - 1000
    past = [corpus.questions[i] for i in random.permutation(last)[:num_past]]
    unseen = [corpus.questions[i] for i in last + random.permutation(len(corpus.questions) - last)]
    engine = kitchen.engine
    library = KnowledgeBase(corpus.passages, engine.router.embedder)
    engine.build(questions=past, retriever=lambda q: library.search(q, 16))

    requests, warm = [], {}
    for question in unseen[:count]:
        found = library.search(question, 4)
        route = engine.route(question)
        passages = [p.text for p in engine.compose(route, found)]
        pins = [p.text for p in engine.pinned(route, found)]
        texts = [p.text for p in found]
        made = kitchen.request(question, passages, context="no pins", found=texts)
        if pins:
            made["shared"] = made["text"].index(pins[-1]) + len(pins[-1])
            # What warming leaves of these pins: their KV, behind the prompt's head.
            other = kitchen.request("What else?", pins, context=f"pins {len(warm)}")
            made["context"] = warm.setdefault(tuple(pins), other)["context"]
        requests.append(made)
    plain = [kitchen.request(r["question"], r["found"], context="plain") for r in requests]
    return Workload(name, requests, warm=list(warm.values()), plain=plain)


def chat(kitchen: Kitchen, count: int) -> Workload:
    """Conversations of four turns; what the assistant said is given, so that all peers agree."""
    texts = {str(d.metadata["id"]): d.page_content for d in bank.documents()}
    unseen = bank.unseen_questions()
    requests = []
    for session in range(count):
        said = [{"role": "system", "content": "You are the assistant of a bank."}]
        for turn in range(TURNS):
            asked = unseen[(session * TURNS + turn) % len(unseen)]
            said.append({"role": "user", "content": asked.text})
            requests.append(_given(kitchen, list(said), asked.text, f"{session}/{turn}"))
            said.append({"role": "assistant", "content": texts[asked.expected_passage]})
    return Workload("chat", requests)


def _given(kitchen: Kitchen, user: Any, question: str, context: str) -> Request:
    """Return a request without retrieval, for a text or for messages."""
    text = kitchen.engine.model.encode(as_messages(user)).text
    return {"question": question, "found": [], "passages": [], "user": user, "text": text,
            "shared": 0, "context": context}  # fmt: skip


def mooncake(kitchen: Kitchen, count: int) -> Workload:
    """The prefix structure of a production trace, an eighth as long; a block is text by its id."""
    path = kitchen.data / "mooncake/conversation_first30min.jsonl"
    words = " ".join(d.page_content for d in bank.documents()).split()
    requests = []
    for row in _trace(path):
        said = "\n\n".join(_piece(words, number) for number in row["hash_ids"])
        said += f"\n\nQuestion: {NEXT}\nAnswer:"
        requests.append(_given(kitchen, said, NEXT, str(len(requests))))
        if len(requests) == count:
            break
    return Workload("mooncake", requests, max_tokens=16)


def _trace(path: Path) -> Iterator[dict[str, Any]]:
    for line in path.read_text("utf-8").splitlines():
        row = json.loads(line)
        if len(row["hash_ids"]) <= LONGEST_TRACE:
            yield row


def _piece(words: Sequence[str], number: int) -> str:
    """Return the text of a block, the same for the same id; about a token and a third a word."""
    start = np.random.default_rng(number).integers(len(words) - PIECE_TOKENS)
    return " ".join(words[start : start + PIECE_TOKENS * 3 // 4])


@dataclass(frozen=True, slots=True)
class Recipe:
    """How a workload is made, how many requests (or documents, or sessions), and of which data."""

    build: Callable[[Kitchen, int], Workload]
    count: int
    needs: str = ""


WORKLOADS = {
    "table": Recipe(table, 12),
    "tatqa": Recipe(tatqa, 2, "tatqa/dev.json"),
    "cfpb": Recipe(cfpb, 10, "banking77/train.csv"),
    "chat": Recipe(chat, 2),
    "mooncake": Recipe(mooncake, 16, "mooncake/conversation_first30min.jsonl"),
    "bank": Recipe(example, 10),
}


def make(
    name: str,
    folder: Path,
    *,
    data: Path,
    vectors: Path,
    count: int | None = None,
    context_tokens: int = CONTEXT_TOKENS,
) -> Workload:
    """Make a workload; its plan, if it has one, stays in the store at `folder`.

    Questions are embedded once and kept in the file `vectors`.
    """
    recipe = WORKLOADS[name]
    known = KnownVectors(lambda: SentenceBertEmbedder.load("bundled:minilm"), vectors)
    with Engine.open(folder, embedder=known) as engine:
        kitchen = Kitchen(engine, data, context_tokens)
        made = recipe.build(kitchen, count or recipe.count)
        made.wake = _given(kitchen, "Say something about the weather.", "", "wake")
        return made
