"""Reuse on equals reuse off, with the real bundled model; every test asserts that it did reuse."""

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import bank
import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from centroidkv import Engine, Message
from centroidkv.models.bundled import bundled_folder
from centroidkv.models.transformers_model import TransformersModel

CONTEXT = "\n\n".join(d.page_content for d in bank.documents()[:5])


def ask_two(engine: Engine, first: str, second: str):
    prompt = f"Answer from the context.\n\nContext:\n{CONTEXT}\n\nQuestion: "
    engine.generate(prompt + first, question=first, max_tokens=2)
    warm = engine.generate(prompt + second, question=second, max_tokens=24)
    cold = engine.generate(prompt + second, question=second, max_tokens=24, reuse="off")
    return warm, cold


def is_same_but_for_ties(warm, cold) -> bool:
    if warm.token_ids == cold.token_ids:
        return True
    at = next(i for i, (a, b) in enumerate(zip(warm.token_ids, cold.token_ids)) if a != b)  # noqa: B905
    return cold.margins[at] < 1e-3


@pytest.mark.parametrize(
    "question",
    ["What do I need to open an account?", "Can I add my wife to my account?", "interest rate?"],
)
def test_a_repeated_context_is_reused_and_the_answer_is_the_same(
    open_engine: Callable[..., Engine], smollm: TransformersModel, question: str
) -> None:
    engine = open_engine(model=smollm)
    warm, cold = ask_two(engine, "How long does it take?", question)
    assert (warm.usage.outcome, warm.usage.reason) == ("hit", "repeated_prefix")
    assert warm.usage.reused_tokens > 600
    assert is_same_but_for_ties(warm, cold)
    assert engine.check().is_clean


def test_logits_of_a_restored_prefix_are_those_of_a_full_prefill(
    smollm: TransformersModel,
) -> None:
    ids = smollm.encode(CONTEXT).token_ids
    cold, warm = smollm.open_sequence(len(ids) + 8), smollm.open_sequence(len(ids) + 8)
    cold.prefill(ids)
    warm.restore([cold.snapshot(0, 64), cold.snapshot(64, 300)])
    warm.prefill(ids[300:])
    difference = (warm.logits - cold.logits).abs().max()
    assert float(difference) < 1e-3
    cold.close()
    warm.close()


def test_answers_are_those_of_transformers_generate(
    open_engine: Callable[..., Engine], smollm: TransformersModel
) -> None:
    folder = bundled_folder("bundled:smollm2")
    tokenizer = AutoTokenizer.from_pretrained(folder)
    plain = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    turns = [{"role": "user", "content": "What is a savings account?"}]
    ids = tokenizer.apply_chat_template(
        turns, add_generation_prompt=True, return_tensors="pt", return_dict=True
    )
    output = plain.generate(**ids, max_new_tokens=24, do_sample=False)
    expected = output[0, ids["input_ids"].shape[1] :].tolist()
    engine = open_engine(model=smollm)
    done = engine.generate([Message("user", "What is a savings account?")], max_tokens=24)
    ours = list(done.token_ids)
    assert ours == expected[: len(ours)]
    assert done.text == tokenizer.decode(ours)


_CHILD = """
import sys
from centroidkv import Engine
import bank
from centroidkv.langchain import CentroidKVRetriever

with Engine.open(sys.argv[1]) as engine:
    retriever = CentroidKVRetriever(engine=engine, base=bank.retriever(engine.router.embedder))
    question = sys.argv[2]
    context = "\\n\\n".join(d.page_content for d in retriever.invoke(question))
    prompt = bank.PROMPT.format(context=context, question=question)
    done = engine.generate(prompt, max_tokens=8)
    cold = engine.generate(prompt, max_tokens=8, reuse="off")
    print(done.usage.outcome, done.usage.reason, done.usage.reused_tokens, done.usage.prompt_tokens)
    print(done.token_ids == cold.token_ids)
"""


def test_a_paraphrase_of_a_missed_question_reuses_its_prefix_in_a_new_process(
    tmp_path: Path,
) -> None:
    def child(question: str) -> list[str]:
        done = subprocess.run(
            [sys.executable, "-c", _CHILD, str(tmp_path / "store"), question],
            capture_output=True,
            text=True,
            check=False,
            cwd=Path(bank.__file__).parent,
        )
        assert done.returncode == 0, done.stderr[-2000:]
        return done.stdout.split()

    outcome, reason, *_ = child("How do I block a card that I have lost?")
    assert (outcome, reason) == ("miss", "empty_store")
    outcome, reason, reused, prompt, same = child("I lost my card, how can I block it?")
    assert outcome in ("hit", "partial")
    assert reason in ("pinned_prefix", "extra_passages")
    assert int(reused) > 0.5 * int(prompt)
    assert same == "True"
