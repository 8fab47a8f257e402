"""Real prompts of 1,000 to 2,000 tokens, their KV, and what the model says behind them.

Owns which prompts a codec is measured on and what of them is kept for the next run. Knows nothing
of levels.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from quality_sets import SETS, QuestionSet

from centroidkv import Message
from centroidkv.config import Sampling
from centroidkv.models.loading import load_model
from centroidkv.models.transformers_model import TransformersModel
from centroidkv.types import FloatArray, KVBlock

FOLLOWING = 48  # tokens of the model's own answer, whose distributions are compared
SHORTEST, LONGEST = 1000, 2000


@dataclass(frozen=True, slots=True)
class Measured:
    """One prompt: its token ids, those of the answer, its exact KV and the exact distributions.

    `block` holds all prompt tokens but the last; `log_probs` has shape [FOLLOWING, vocabulary].
    """

    name: str
    prompt: tuple[int, ...]
    answer: tuple[int, ...]
    block: KVBlock
    log_probs: FloatArray


class Prompts:
    """The prompts of two question sets; what the model makes of them is kept in a folder."""

    def __init__(self, data: Path, work: Path) -> None:
        self._data = data
        self._work = work
        work.mkdir(parents=True, exist_ok=True)

    @cached_property
    def model(self) -> TransformersModel:
        model = load_model("bundled:smollm2", dtype="float32")
        assert isinstance(model, TransformersModel)
        return model

    def named(self, split: str, each: int) -> list[str]:
        """Name `each` prompts of each set; those of `train` and `test` have no question alike."""
        return [f"{kind}-{split}-{i}" for i in range(each) for kind in SETS]

    def measured(self, name: str) -> Measured:
        path = self._work / f"{name}.npz"
        if not path.exists():
            self._measure(name, path)
        with np.load(path) as kept:
            block = KVBlock(kept["keys"], kept["values"], "float32")
            ids = tuple(kept["prompt"].tolist()), tuple(kept["answer"].tolist())
            return Measured(name, *ids, block, kept["log_probs"])

    def log_probs(self, one: Measured, block: KVBlock) -> FloatArray:
        """Return the distributions of the answer's tokens behind other KV of the prompt."""
        ids = [one.prompt[-1], *one.answer[:-1]]
        return log_probs(self.model, block, ids)

    def _measure(self, name: str, path: Path) -> None:
        kind, split, number = name.split("-")
        prompt = self._prompt(kind, split, int(number))
        sequence = self.model.open_sequence(len(prompt) + FOLLOWING + 1)
        sequence.prefill(prompt[:-1])
        block = sequence.snapshot(0, len(prompt) - 1)
        sequence.close()
        answer = self._answer(block, prompt)
        exact = log_probs(self.model, block, [prompt[-1], *answer[:-1]])
        part = path.with_suffix(".part.npz")
        np.savez(part, keys=block.keys, values=block.values, prompt=np.array(prompt),
                 answer=np.array(answer), log_probs=exact)  # fmt: skip
        part.replace(path)

    def _answer(self, block: KVBlock, prompt: tuple[int, ...]) -> list[int]:
        """Return the model's greedy answer; behind its end it goes on as after a turn's end."""
        sequence = self.model.open_sequence(len(prompt) + FOLLOWING + 1)
        sequence.restore([block])
        answer: list[int] = []
        following = list(prompt[-1:])
        while len(answer) < FOLLOWING:
            sequence.prefill(following)
            answer += [t.id for t in sequence.decode(Sampling(max_tokens=FOLLOWING - len(answer)))]
            following = answer[-1:]
        sequence.close()
        return answer[:FOLLOWING]

    def _prompt(self, kind: str, split: str, number: int) -> tuple[int, ...]:
        questions = self._sets[kind]
        random = np.random.default_rng([number, split == "test"])
        asked = [a for fold in questions.folds for a in fold.asked]
        half = asked[(split == "test") :: 2]
        one = half[int(random.integers(len(half)))]
        wanted = int(random.integers(SHORTEST, LONGEST - 100))
        taken = list(one.expected[:1])
        others = self._others(questions, random)
        prompt: tuple[int, ...] = ()
        while len(prompt) < wanted:
            prompt = self._rendered(questions.system, taken, one.question)
            taken.append(next(others))
        return prompt

    def _others(self, questions: QuestionSet, random: np.random.Generator) -> Iterator[str]:
        """Yield runs of five neighbouring passages, as a retriever finds what belongs together."""
        while True:
            start = int(random.integers(len(questions.passages)))
            yield from (p.text for p in questions.passages[start : start + 5])

    def _rendered(self, system: str, texts: list[str], question: str) -> tuple[int, ...]:
        order = np.random.default_rng(len(texts)).permutation(len(texts))
        context = "\n\n".join(texts[i] for i in order)
        user = f"Context:\n{context}\n\nQuestion: {question}"
        return self.model.encode([Message("system", system), Message("user", user)]).token_ids

    @cached_property
    def _sets(self) -> dict[str, QuestionSet]:
        return {name: load(self._data, seed=0) for name, load in SETS.items()}


def log_probs(model: TransformersModel, block: KVBlock, ids: list[int]) -> FloatArray:
    """Run tokens behind a block; return the log-probabilities of what follows each."""
    sequence = model.open_sequence(block.num_tokens + len(ids) + 1)
    sequence.restore([block])
    kv = sequence._open
    with torch.inference_mode():
        rows = model.forward(ids, kv, rows=len(ids))
        found: NDArray[np.float32] = torch.log_softmax(rows.float(), -1).numpy()
    sequence.close()
    return found
