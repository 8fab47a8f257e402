"""A tiny model that blends, and chains of one function whose prompts hold known passages."""

from collections.abc import Sequence

import torch
from transformers import PreTrainedTokenizerFast

from centroidkv import Completion, Engine, Passage
from centroidkv.models.attention import use_shared_kv_heads
from centroidkv.models.loading import wrap_model
from centroidkv.models.transformers_model import TransformersModel
from small_parts import make_llama
from word_bank import PASSAGES

CARD, WIRE, LOAN = PASSAGES["card"], PASSAGES["wire"], PASSAGES["loan"]
SYSTEM = "From the context."
ASKED = "how do I block a lost card"

__all__ = [
    "ASKED",
    "CARD",
    "LOAN",
    "SYSTEM",
    "WIRE",
    "ask_about",
    "blending_model",
    "learn",
    "plain",
    "rendered",
]


def blending_model(tokenizer: PreTrainedTokenizerFast) -> TransformersModel:
    """The random Llama with weights large enough that contexts matter."""
    llama = make_llama()
    with torch.no_grad():
        for weight in llama.model.parameters():
            if weight.ndim > 1:
                weight.mul_(4)
    use_shared_kv_heads(llama)
    return wrap_model(llama, tokenizer)


def rendered(texts: Sequence[str], question: str) -> str:
    context = "\n\n".join(texts)
    return f"{SYSTEM}\n\n{context}\n\nQuestion: {question}"


def ask_about(
    engine: Engine, texts: Sequence[str], question: str = ASKED, **options: object
) -> Completion:
    """Note passages as a retriever wrapper would, render them in their order, and answer.

    In the order given, if one is: pins would go first as soon as a cluster has grown behind an
    answer, and two answers could be those to two prompts.
    """
    passages = engine.compose(engine.route(question), [Passage.of(t) for t in texts])
    shown = texts or [p.text for p in passages]
    return engine.generate(rendered(shown, question), max_tokens=8, question=question, **options)


def plain(
    engine: Engine, texts: Sequence[str], question: str = ASKED, **options: object
) -> Completion:
    """Answer a prompt with every passage where it is, repeated ones too, without a retriever."""
    return engine.generate(rendered(texts, question), max_tokens=8, **options)


def learn(engine: Engine, *texts: str) -> None:
    """Show passages in two prompts: the first tells that there is a head, the second which."""
    for question in ("first of all", "and then"):
        ask_about(engine, texts, question)
        engine.flush()
