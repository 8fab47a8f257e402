"""What int8 linear layers save and cost: seconds of a forward, and how the answers change.

    PYTHONPATH=examples/financial_chatbot python benchmarks/int8.py [--questions 12] [--rounds 9]

Speed: forwards of 1, 30 and 64 tokens behind 2,000 tokens of KV, float32 and int8 in turn.
Accuracy: the float32 model answers the example bank's unseen questions from the two passages
found; both models then read prompt and answer, and their next-token distributions are compared at
each token of the answer.
"""

import argparse
import json
import statistics
import time
from pathlib import Path

import bank
import torch
from machine import machine
from torch.nn.functional import kl_div, log_softmax

from centroidkv.config import Sampling
from centroidkv.models.loading import load_model
from centroidkv.models.transformers_model import TransformersModel
from centroidkv.routing.embedder import SentenceBertEmbedder

BEHIND, WIDTHS, TOKENS = 2000, (1, 30, 64), 32


def speed(models: dict[str, TransformersModel], rounds: int) -> dict[str, dict[str, float]]:
    """Return median milliseconds by model and number of tokens."""
    ids = torch.randint(0, 40_000, (max(WIDTHS),), generator=torch.Generator().manual_seed(0))
    opened = {name: m.open_sequence(BEHIND + max(WIDTHS)) for name, m in models.items()}
    times: dict[tuple[str, int], list[float]] = {}
    for sequence in opened.values():
        sequence._open.keys.normal_()
        sequence._open.values.normal_()
    for turn in range(rounds + 1):
        for width in WIDTHS:
            for name, model in models.items():
                arena = opened[name]._open
                arena.resize(BEHIND)
                start = time.perf_counter()
                model.forward(ids[:width].tolist(), arena)
                if turn:
                    times.setdefault((name, width), []).append(time.perf_counter() - start)
    for sequence in opened.values():
        sequence.close()
    return {
        name: {str(w): round(1e3 * statistics.median(times[name, w]), 1) for w in WIDTHS}
        for name in models
    }


def logits(model: TransformersModel, prompt: list[int], answer: list[int]) -> torch.Tensor:
    """Return what a model expects at each token of an answer, [tokens, vocabulary]."""
    sequence = model.open_sequence(len(prompt) + len(answer))
    rows = model.forward([*prompt, *answer[:-1]], sequence._open, rows=len(answer))
    sequence.close()
    return rows.float()


def accuracy(plain: TransformersModel, int8: TransformersModel, prompts: list[str]) -> dict:
    """Compare next-token distributions along the answers of the plain model."""
    divergences, agreed, same = [], [], 0
    for prompt in prompts:
        ids = list(plain.encode(prompt).token_ids)
        answers = []
        for model in (plain, int8):
            sequence = model.open_sequence(len(ids) + TOKENS)
            sequence.prefill(ids)
            answers.append([t.id for t in sequence.decode(Sampling(max_tokens=TOKENS))])
            sequence.close()
        same += answers[0] == answers[1]
        one, two = (logits(m, ids, answers[0]) for m in (plain, int8))
        first, second = log_softmax(one, -1), log_softmax(two, -1)
        divergences += kl_div(second, first, reduction="none", log_target=True).sum(-1).tolist()
        agreed += (one.argmax(-1) == two.argmax(-1)).tolist()
    return {
        "prompts": len(prompts),
        "tokens": len(agreed),
        "mean_kl": round(statistics.mean(divergences), 5),
        "greedy_agreement": round(statistics.mean(agreed), 4),
        "answers_identical": same,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--questions", type=int, default=12)
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--output", type=Path, default=Path(__file__).parent / "results/int8.json")
    options = parser.parse_args()
    plain = load_model("bundled:smollm2")
    int8 = load_model("bundled:smollm2", quantization="int8")
    base = bank.retriever(SentenceBertEmbedder.load("bundled:minilm"))
    prompts = []
    for question in bank.unseen_questions()[: options.questions]:
        context = "\n\n".join(d.page_content for d in base.invoke(question.text)[:2])
        prompts.append(bank.PROMPT.format(context=context, question=question.text))
    milliseconds = speed({"float32": plain, "int8": int8}, options.rounds)
    result = {
        "machine": machine(),
        "behind_tokens": BEHIND,
        "milliseconds": milliseconds,
        "float32_over_int8": {
            w: round(milliseconds["float32"][w] / milliseconds["int8"][w], 2)
            for w in milliseconds["int8"]
        },
        "accuracy": accuracy(plain, int8, prompts),
    }
    options.output.write_text(json.dumps(result, indent=1) + "\n", "utf-8")
    print(json.dumps(result, indent=1))


if __name__ == "__main__":
    main()
