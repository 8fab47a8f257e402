"""Every family of models reuses exactly, or is refused with a reason when it is opened."""

from collections.abc import Sequence
from pathlib import Path

import pytest
import torch

from centroidkv import Engine
from centroidkv.config import Sampling
from centroidkv.errors import UnsupportedModel
from centroidkv.models.cut_check import TESTED
from centroidkv.models.drafting import Kind, Pace
from centroidkv.models.loading import wrap_model
from centroidkv.models.transformers_model import TransformersModel
from centroidkv.types import Drafts
from model_families import FAMILIES, REFUSED, WINDOW, Family, make_model
from small_parts import HashEmbedder, make_tokenizer

PAGE = Path(__file__).parents[3] / "docs" / "models.md"
TOKENS = 3 * WINDOW + 7
ROOM = TOKENS + 64
GREEDY = Sampling(max_tokens=12)
CONTEXT = "Lost cards are blocked by phone, at any hour, and a new one comes within five days. "
every_family = pytest.mark.parametrize("family", FAMILIES, ids=lambda f: f.name)


class Eager(Pace):
    """Verifies every guess, whatever it costs."""

    def length(self, kind: Kind, most: int, *, behind: int = 1) -> int:
        return most


def opened(family: Family) -> TransformersModel:
    return wrap_model(make_model(family), make_tokenizer())


def prompt_ids() -> list[int]:
    return torch.randint(0, 256, (TOKENS,), generator=torch.Generator().manual_seed(1)).tolist()


def decoded(sequence, rest: Sequence[int], drafts: Drafts | None = None) -> tuple[list[int], int]:
    """Run the rest of a prompt and answer; return the answer and how much of it was guessed."""
    sequence.prefill(rest, drafts)
    tokens = list(sequence.decode(GREEDY))
    return [t.id for t in tokens], sum(t.is_drafted for t in tokens)


@every_family
def test_kv_put_back_before_at_and_behind_the_window_continues_the_same(family: Family) -> None:
    model, ids = opened(family), prompt_ids()
    cold = model.open_sequence(ROOM)
    expected, _ = decoded(cold, ids)
    block = cold.snapshot(0, TOKENS)
    for cut in (WINDOW // 2, WINDOW - 1, WINDOW, WINDOW + 1, 2 * WINDOW + 9, TOKENS - 1):
        warm = model.open_sequence(ROOM)
        warm.restore([block.part(0, cut // 2), block.part(cut // 2, cut)])
        assert warm.num_tokens == cut
        assert decoded(warm, ids[cut:])[0] == expected, cut
        warm.close()
    cold.close()


@every_family
def test_answers_are_those_of_transformers_generate(family: Family) -> None:
    model, ids = opened(family), prompt_ids()
    sequence = model.open_sequence(ROOM)
    answer, _ = decoded(sequence, ids)
    output = model.model.generate(
        torch.tensor([ids]),
        attention_mask=torch.ones(1, TOKENS, dtype=torch.long),
        max_new_tokens=GREEDY.max_tokens,
        do_sample=False,
    )
    assert answer == output[0, TOKENS : TOKENS + len(answer)].tolist()
    sequence.close()


@every_family
def test_drafts_change_no_token(family: Family) -> None:
    model, ids = opened(family), prompt_ids()
    model.pace = Eager()
    plain = model.open_sequence(ROOM)
    expected, _ = decoded(plain, ids)
    half = len(expected) // 2
    wrong = [*expected[:half], (expected[half] + 1) % 200, *expected[half + 1 :]]
    for guess, least in ((expected, len(expected) - 1), (wrong, half)):
        drafted = model.open_sequence(ROOM)
        answer, right = decoded(drafted, ids, Drafts(prompt=tuple(ids), repeat=tuple(guess)))
        assert answer == expected
        assert right >= least
        drafted.close()
    plain.close()


@every_family
def test_an_engine_reuses_in_memory_and_from_disk(family: Family, tmp_path: Path) -> None:
    model = opened(family)

    def ask(engine: Engine, question: str, **options: str) -> tuple[tuple[int, ...], str, str]:
        prompt = f"{CONTEXT * 2}Question: {question}"
        done = engine.generate(prompt, question=question, max_tokens=8, **options)
        return done.token_ids, done.usage.outcome, done.usage.tier

    questions = ["how do I block my card?", "when does it come?", "is there a fee?"]
    with Engine.open(tmp_path / "store", model=model, embedder=HashEmbedder()) as engine:
        assert ask(engine, questions[0])[1] == "miss"
        taken_over = ask(engine, questions[1])
        assert taken_over == (ask(engine, questions[1], reuse="off")[0], "hit", "memory")
        assert engine.check().is_clean
    with Engine.open(tmp_path / "store", model=model, embedder=HashEmbedder()) as engine:
        restored = ask(engine, questions[2])
        assert restored == (ask(engine, questions[2], reuse="off")[0], "hit", "disk")


@pytest.mark.parametrize("family", REFUSED, ids=lambda f: f.name)
def test_what_cannot_be_cut_is_refused_when_it_is_opened(family: Family) -> None:
    model = make_model(family)
    with pytest.raises(UnsupportedModel, match=f"{type(model).__name__}.*; use a model with"):
        wrap_model(model, make_tokenizer())


def test_every_tested_class_is_known_as_such() -> None:
    assert {type(make_model(family)).__name__ for family in FAMILIES} == TESTED


def test_an_untested_class_is_tried_first() -> None:
    class Forgetful(type(make_model(FAMILIES[0]))):  # type: ignore[misc]
        """Keeps the first token it ever saw outside its cache."""

        first = None

        def forward(self, input_ids, **options):
            if input_ids.shape[1] > 1:
                self.first, before = input_ids[:, :1].clone(), self.first
                input_ids = input_ids if before is None else input_ids + before - input_ids[:, :1]
            return super().forward(input_ids=input_ids, **options)

    plain = make_model(FAMILIES[0])
    honest, forgetful = (type("Other", (type(plain),), {})(plain.config), Forgetful(plain.config))
    assert type(honest).__name__ not in TESTED
    wrap_model(honest, make_tokenizer())
    with pytest.raises(UnsupportedModel, match="Forgetful answers otherwise"):
        wrap_model(forgetful, make_tokenizer())


def test_the_page_of_models_lists_what_was_tested() -> None:
    rows = [f"| {f.name} | {f.keeps} | exact |" for f in FAMILIES]
    rows += [f"| {f.name} | {f.keeps} | refused |" for f in REFUSED]
    found = [
        line
        for line in PAGE.read_text("utf-8").splitlines()
        if line.endswith(("exact |", "refused |"))
    ]
    assert found == rows
