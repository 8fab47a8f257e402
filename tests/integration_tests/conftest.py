"""The real small models, loaded once for all integration tests."""

import csv
import itertools
from pathlib import Path

import bank
import pytest

from centroidkv.models.loading import load_model
from centroidkv.models.transformers_model import TransformersModel
from centroidkv.routing.embedder import SentenceBertEmbedder


@pytest.fixture(scope="session")
def smollm() -> TransformersModel:
    return load_model("bundled:smollm2")


@pytest.fixture(scope="session")
def minilm() -> SentenceBertEmbedder:
    return SentenceBertEmbedder.load("bundled:minilm")


@pytest.fixture(scope="session")
def small_bank(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """Files of a small bank: the passages on cards and transfers, and their past questions."""
    folder = tmp_path_factory.mktemp("bank")
    passages, questions = folder / "passages.jsonl", folder / "questions.csv"
    lines = (bank.DATA / "passages.jsonl").read_text("utf-8").splitlines()
    kept = [line for line in lines if '"cards"' in line or '"transfers"' in line]
    passages.write_text("\n".join(kept) + "\n", "utf-8")
    rows = [r for r in bank.past_questions() if r["domain"] in ("cards", "transfers")]
    with questions.open("w", encoding="utf-8", newline="") as file:
        writer = csv.DictWriter(file, ["question", "domain"])
        writer.writeheader()
        writer.writerows(itertools.islice(rows, 60))
    return questions, passages
