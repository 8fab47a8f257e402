"""A small engine over the bank of `word_bank.py`, and whether it answers as without a store.

Everything is imported and the model made before anything is forked; no thread is started.
"""

import base64
import os
import sys
from pathlib import Path
from typing import Any

os.environ.setdefault("OMP_NUM_THREADS", "1")
sys.path.insert(0, str(Path(__file__).parents[1]))

import chromadb  # noqa: F401  # imported before any fork
import torch

from centroidkv import Engine
from centroidkv.models.loading import wrap_model
from small_parts import HashEmbedder, make_llama, make_tokenizer
from word_bank import ask

torch.set_num_threads(1)

__all__ = ["NEW_QUESTIONS", "SEALED", "answers_differ", "open_engine"]

MODEL = wrap_model(make_llama(), make_tokenizer())
# What makes a store an encrypted one.
SEALED = {"encryption_key": base64.b64encode(bytes(range(32))).decode()}
NEW_QUESTIONS = [
    "is my lost card blocked at once",
    "when does a wire to another country arrive",
    "charge for repaying a loan early please",
    "how many days until a new card arrives",
]


def open_engine(path: Path, **settings: Any) -> Engine:
    """Open a store with the small model and embedder."""
    return Engine.open(path, model=MODEL, embedder=HashEmbedder(), **settings)


def answers_differ(engine: Engine, questions: list[str]) -> list[str]:
    """Ask questions with reuse and without; return those whose greedy tokens differ."""
    return [
        question
        for question in questions
        if ask(engine, question).token_ids != ask(engine, question, reuse="off").token_ids
    ]
