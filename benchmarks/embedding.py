"""What embedding one question costs: SentenceTransformer.encode against ours, and how equal it is.

Unseen questions of the example bank, each embedded all three ways in changing order, each way once
before the clock runs: `encode` as users call it, the pipeline of parts (`sentence_pipeline.py`,
which other encoders than BERT take) and the product's own way (`bert.py` for MiniLM).

    PYTHONPATH=examples/financial_chatbot python benchmarks/embedding.py [--rounds 3]
"""

import argparse
import json
import time
from pathlib import Path

import bank
import numpy as np
from machine import machine
from sentence_transformers import SentenceTransformer

from centroidkv.routing.embedder import SentenceBertEmbedder, _locate
from centroidkv.routing.sentence_pipeline import SentencePipeline


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--questions", type=int, default=80)
    parser.add_argument("--out", type=Path, default=Path("benchmarks/results/embedding.json"))
    options = parser.parse_args()
    model = SentenceTransformer(_locate("bundled:minilm"))
    parts = SentencePipeline.of(model)
    assert parts is not None
    parts._alone = None
    ours = SentenceBertEmbedder.load("bundled:minilm")
    ways = {
        "encode": lambda t: model.encode([t], normalize_embeddings=True, show_progress_bar=False),
        "pipeline": lambda t: parts.embed([t]),
        "ours": lambda t: ours.embed([t]),
    }
    questions = [q.text for q in bank.unseen_questions()[: options.questions]]
    times: dict[str, list[float]] = {way: [] for way in ways}
    furthest = 0.0
    for number in range(options.rounds):
        for index, question in enumerate(questions):
            order = list(ways)[(number + index) % 3 :] + list(ways)[: (number + index) % 3]
            vectors = {}
            for way in order:
                ways[way](question)
                begin = time.perf_counter()
                vectors[way] = ways[way](question)
                times[way].append(time.perf_counter() - begin)
            furthest = max(furthest, float(np.abs(vectors["ours"] - vectors["encode"]).max()))
    figures = {}
    for way, seconds in times.items():
        shown = np.percentile(1e3 * np.array(seconds), [50, 90, 99]).round(2).tolist()
        figures[way] = dict(zip(("p50_ms", "p90_ms", "p99_ms"), shown, strict=True))
        print(f"{way:10}{figures[way]}")
    ratio = {
        way: round(float(np.median(times[way]) / np.median(times["ours"])), 2)
        for way in ("encode", "pipeline")
    }
    print("median / ours:", ratio, " largest difference of a number:", furthest)
    report = {
        "machine": machine(),
        "num_embeddings": len(times["ours"]),
        "figures": figures,
        "median / ours": ratio,
        "largest_difference": furthest,
    }
    options.out.write_text(json.dumps(report, indent=1) + "\n")


if __name__ == "__main__":
    main()
