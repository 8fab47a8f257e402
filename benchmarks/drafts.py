"""What verified drafts save, and what they cost where there is nothing to save.

    PYTHONPATH=examples/financial_chatbot python benchmarks/drafts.py [--questions 10] [--part ...]

`saved`: two stores of one model, one with `drafts=False`. Every question is asked twice of each,
32 tokens; the prefix is in memory in all four cases. Seconds are those from the call to the last
token.

`worst`: the model alone, its prompts in memory, answers of 32 tokens: without drafts, with the
prompt alone to guess from, with earlier answers made to mislead (what follows each four tokens of
the true answer is wrong in them), with ones that are right for some tokens and then mislead, and
with a small model of random weights. Each way keeps its own account of luck and times. Order
changes from round to round; the ratio is the median over pairs of one round.
"""

import argparse
import json
import statistics
import tempfile
import time
from pathlib import Path
from typing import Any

import bank
import torch
from machine import machine
from transformers import LlamaConfig, LlamaForCausalLM
from transformers.utils import logging as transformers_logging

from centroidkv import Engine
from centroidkv.config import Sampling
from centroidkv.models.draft_loading import attach_draft_model
from centroidkv.models.drafting import Pace
from centroidkv.models.loading import load_model
from centroidkv.models.transformers_model import TransformersModel
from centroidkv.routing.embedder import SentenceBertEmbedder
from centroidkv.types import Drafts

TOKENS = 32
WAYS = ("nothing to guess from", "misleading", "right, then misleading", "random small model")


def measure(folder: Path, questions: list[str]) -> dict[str, list[float]]:
    plain = Engine.open(folder / "plain", drafts=False)
    drafted = Engine.open(folder / "drafted", model=plain.model, embedder=plain.router.embedder)
    base = bank.retriever(plain.router.embedder)
    times: dict[str, list[float]] = {}
    guessed = 0
    for number, question in enumerate(questions):
        context = "\n\n".join(d.page_content for d in base.invoke(question))
        prompt = bank.PROMPT.format(context=context, question=question)
        for engine in (plain, drafted):
            engine.generate(prompt, max_tokens=1)  # the prefix goes into the store
            engine.flush()
        for turn in ("first", "again"):
            order = [("off", plain), ("on", drafted)]
            answers = {}
            for name, engine in order if number % 2 else order[::-1]:
                done = engine.generate(prompt, max_tokens=TOKENS)
                engine.flush()
                answers[name] = done.token_ids
                times.setdefault(f"{turn}, drafts {name}", []).append(done.usage.total_s)
                guessed += done.usage.drafted_tokens
            assert answers["on"] == answers["off"], question
    plain.close()
    drafted.close()
    assert guessed > 0, "no token was guessed right"
    return times


def misleading(answer: tuple[int, ...], vocabulary: int) -> tuple[int, ...]:
    """Return a text in which something else follows each four tokens of an answer."""
    text: list[int] = []
    for i in range(2, len(answer)):
        wrong = [(t + 1) % vocabulary for t in answer[i : i + 8]]
        text += [*answer[max(0, i - 4) : i], *wrong]
    return tuple(text)


def random_small_model(model: TransformersModel) -> LlamaForCausalLM:
    torch.manual_seed(0)
    return LlamaForCausalLM(
        LlamaConfig(
            vocab_size=model.model.config.vocab_size,
            hidden_size=64,
            intermediate_size=128,
            num_hidden_layers=2,
            num_attention_heads=4,
            num_key_value_heads=2,
            max_position_embeddings=model.context_tokens,
        )
    )


def decode(model: TransformersModel, prompt: tuple[int, ...], drafts: Drafts | None) -> Any:
    """Answer a prompt that is in memory; return the tokens and the seconds."""
    begin = time.perf_counter()
    sequence = model.open_sequence(len(prompt) + TOKENS, prompt, namespace="drafts")
    sequence.prefill(prompt[sequence.num_tokens :], drafts)
    tokens = tuple(t.id for t in sequence.decode(Sampling(max_tokens=TOKENS)))
    sequence.close()
    return tokens, time.perf_counter() - begin


def worst(questions: list[str], rounds: int) -> dict[str, Any]:
    """Return per way the ratio of its time to that without drafts, and the seconds."""
    model = load_model("bundled:smollm2")
    base = bank.retriever(SentenceBertEmbedder.load("bundled:minilm"))
    paces = {way: Pace() for way in ("plain", *WAYS)}
    model.pace = paces["random small model"]
    attach_draft_model(model, random_small_model(model))
    small = model.draft_model
    times: dict[str, list[float]] = {way: [] for way in paces}
    for question in questions:
        context = "\n\n".join(d.page_content for d in base.invoke(question))
        text = bank.PROMPT.format(context=context, question=question)
        prompt = model.encode(text).token_ids
        model.pace, model.draft_model = paces["plain"], None
        true, _ = decode(model, prompt, None)
        wrong = misleading(true, model.model.config.vocab_size)
        drafts = {
            "plain": None,
            "nothing to guess from": Drafts(prompt),
            "misleading": Drafts(prompt, wrong[:TOKENS], (wrong,)),
            "right, then misleading": Drafts(prompt, (*true[:6], *wrong[:TOKENS]), (wrong,)),
            "random small model": Drafts(prompt),
        }
        for number in range(rounds):
            order = [*paces] if number % 2 else [*paces][::-1]
            for way in order:
                model.pace = paces[way]
                model.draft_model = small if way == "random small model" else None
                tokens, seconds = decode(model, prompt, drafts[way])
                assert tokens == true, (way, question)
                times[way].append(seconds)
    pairs = {way: zip(times[way], times["plain"], strict=True) for way in WAYS}
    ratios = {way: statistics.median(a / b for a, b in pairs[way]) for way in WAYS}
    for way, ratio in ratios.items():
        print(f"{way:26}{statistics.median(times[way]) * 1e3:9.0f} ms   / plain {ratio:.3f}")
    return {"with / without drafts": ratios, "seconds": times}


def saved(questions: list[str]) -> dict[str, Any]:
    with tempfile.TemporaryDirectory() as folder:
        times = measure(Path(folder), questions)
    middle = {name: statistics.median(values) for name, values in times.items()}
    ratios = {
        turn: middle[f"{turn}, drafts off"] / middle[f"{turn}, drafts on"]
        for turn in ("first", "again")
    }
    for name, value in middle.items():
        print(f"{name:20}{value * 1e3:9.0f} ms")
    print({turn: round(ratio, 2) for turn, ratio in ratios.items()})
    return {"off / on": ratios, "seconds": times}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--questions", type=int, default=10)
    parser.add_argument("--rounds", type=int, default=6, help="of each way and question")
    parser.add_argument("--part", choices=("saved", "worst"), nargs="*", default=["saved", "worst"])
    parser.add_argument("--out", type=Path, default=Path("benchmarks/results/drafts.json"))
    options = parser.parse_args()
    transformers_logging.disable_progress_bar()
    questions = [q.text for q in bank.unseen_questions()[: options.questions]]
    report = json.loads(options.out.read_text()) if options.out.exists() else {}
    report["machine"] = machine()
    if "saved" in options.part:
        report.update(saved(questions))
    if "worst" in options.part:
        report["worst case"] = worst(questions, options.rounds)
    options.out.write_text(json.dumps(report, indent=1) + "\n")


if __name__ == "__main__":
    main()
