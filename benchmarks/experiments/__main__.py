"""Run the experiments, all or in parts; every part goes on where it was stopped.

PYTHONPATH=benchmarks:examples/financial_chatbot python -m experiments --data ../shared/data

Parts: `sweeps` (clusterings, no model), `baselines`, `times` (the model answers), `report` (CSV
and plots from what the others left in the work folder).
"""

import argparse
import json
from collections.abc import Iterator
from functools import partial
from pathlib import Path

from transformers.utils import logging as transformers_logging

from centroidkv.routing.embedder import SentenceBertEmbedder
from experiments.baselines import baselines
from experiments.corpora import Corpus, KnownVectors, banking77, example_bank
from experiments.sweeps import NUM_PAST, points, sweep
from experiments.tables import report
from experiments.times import Sample, Timing, read_rows

PARTS = ("sweeps", "baselines", "times", "report")
# BANKING77's clusterings do not depend on the knowledge base, so one sweep serves all three.
CORPORA = ("ask_cfpb", "tau2", "question_alone", "example_bank")
SWEPT = ("ask_cfpb", "example_bank")
RESULTS = Path(__file__).parents[1] / "results/experiments"
QUICK = {"num_past": 200, "sample": Sample(cheap=3, dear=2, extra=1, context_tokens=1000)}


def main() -> None:
    options = _options()
    transformers_logging.disable_progress_bar()
    options.work.mkdir(parents=True, exist_ok=True)
    load = partial(SentenceBertEmbedder.load, "bundled:minilm")
    known = KnownVectors(load, options.vectors or options.work / "vectors.npz")
    num_past = QUICK["num_past"] if options.quick else NUM_PAST
    finished = True
    for corpus in _corpora(options, known):
        if "sweeps" in options.part and corpus.name in SWEPT:
            _sweep(corpus, known, options, num_past)
        if "baselines" in options.part and corpus.passages:
            found = baselines(corpus, known, num_past=num_past)
            _write(options.work / f"baselines-{corpus.name}.jsonl", found)
        if "times" in options.part:
            timing = Timing(corpus, known, options.work, _sample(options))
            finished &= timing.run(num_past=num_past, minutes=options.minutes)
    if "report" in options.part:
        report(options.work, options.out)
    if not finished:
        raise SystemExit("time is up; run it again to go on")


def _corpora(options: argparse.Namespace, known: KnownVectors) -> Iterator[Corpus]:
    for name in options.corpora:
        if name == "example_bank":
            yield example_bank(known)
        elif (options.data / "banking77/train.csv").exists():
            yield banking77(options.data, name)
        else:
            print(f"{name} is left out: there is no BANKING77 in {options.data} (--data)")


def _sweep(corpus: Corpus, known: KnownVectors, options: argparse.Namespace, num_past: int) -> None:
    path = options.work / f"sweeps-{corpus.name}.jsonl"
    done = {(r["figure"], r["num_past"], r["k_asked"], r["pca_dim"], r["clustering"], r["seed"])
            for r in read_rows(path)}  # fmt: skip
    vectors = known.embed(corpus.questions)
    with path.open("a", encoding="utf-8") as file:
        for point in points(corpus, num_past=num_past, quick=options.quick):
            made = point.settings
            key = (point.figure, point.num_past, *(made[n] for n in ("num_clusters", "pca_dim")))
            seeds = [s for s in range(options.seeds) if (*key, made["clustering"], s) not in done]
            for row in sweep(corpus, vectors, point, seeds):
                file.write(json.dumps(row) + "\n")
                file.flush()


def _sample(options: argparse.Namespace) -> Sample:
    return QUICK["sample"] if options.quick else Sample()


def _write(path: Path, rows: Iterator[dict]) -> None:
    """Write rows as they come, into a file of its own until all are there."""
    part = path.with_suffix(".part")
    with part.open("w", encoding="utf-8") as file:
        for row in rows:
            file.write(json.dumps(row) + "\n")
            file.flush()
    part.replace(path)


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="experiments", description=__doc__)
    parser.add_argument("--data", type=Path, default=Path("../shared/data"))
    parser.add_argument("--work", type=Path, default=Path("/tmp/centroidkv-experiments"))
    parser.add_argument("--out", type=Path, default=RESULTS)
    parser.add_argument("--vectors", type=Path, help="npz file to keep the vectors in")
    parser.add_argument("--part", nargs="+", choices=PARTS, default=PARTS)
    parser.add_argument("--corpora", nargs="+", choices=CORPORA)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--minutes", type=float, default=600.0, help="stop timing after these")
    parser.add_argument("--quick", action="store_true", help="a small part of the example bank")
    options = parser.parse_args()
    options.corpora = options.corpora or (["example_bank"] if options.quick else CORPORA)
    options.seeds = 1 if options.quick else options.seeds
    return options


if __name__ == "__main__":
    main()
