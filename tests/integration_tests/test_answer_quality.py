"""The measurement of answer quality itself: its scores, its batches, and a handful of questions."""

import json
import sys
from pathlib import Path

import pytest

from centroidkv import Engine, Message
from centroidkv.models.transformers_model import TransformersModel
from centroidkv.routing.embedder import SentenceBertEmbedder

ROOT = Path(__file__).parents[2]
DATA = ROOT.parent / "shared" / "data"
sys.path.insert(0, str(ROOT / "benchmarks"))

from quality_answers import BatchedModel, KeptAnswers, batches  # noqa: E402
from quality_scores import bootstrap, is_exact, token_f1  # noqa: E402
from quality_sets import tatqa  # noqa: E402

needs_data = pytest.mark.skipif(
    not (DATA / "tatqa").exists(), reason=f"the public data sets are not in {DATA}"
)


def test_f1_counts_shared_words_as_squad_does() -> None:
    assert token_f1("The total is $1,496.5.", "$1,496.5") == pytest.approx(2 / 4)
    assert token_f1("2018 2018 2018", "2018") == pytest.approx(2 / 4)
    assert token_f1("nothing shared", "2018") == 0
    assert token_f1("", "2018") == 0
    assert is_exact("a Fixed-price type.", "fixed-price type")
    assert not is_exact("fixed-price type contracts", "fixed-price type")


def test_the_interval_holds_the_mean_and_widens_where_questions_of_a_document_are_alike() -> None:
    differences = [0.1] * 10 + [-0.1] * 10
    alone = bootstrap(differences)
    together = bootstrap(differences, ["one"] * 10 + ["other"] * 10)
    assert alone.mean == together.mean == pytest.approx(0)
    assert together.low <= alone.low < 0 < alone.high <= together.high
    assert (together.low, together.high) == pytest.approx((-0.1, 0.1))
    assert alone.verdict == "inconclusive"
    assert bootstrap([0.0, 0.01]).verdict == "holds"
    assert bootstrap([-0.3, -0.2]).verdict == "falls"


def test_batches_hold_every_prompt_once_and_those_that_begin_alike_in_a_row() -> None:
    cluster = [(*range(300), 1000 + i) for i in range(20)]
    other = [(*range(500, 700), 2000 + i) for i in range(3)]
    found = batches([*other, *cluster[::-1], cluster[0]])
    assert [p for batch in found for p in batch] == [*cluster, *other]
    assert [len(batch) for batch in found] == [12, 11]


def test_answers_given_together_are_those_of_the_product(
    tmp_path: Path, smollm: TransformersModel, minilm: SentenceBertEmbedder
) -> None:
    context = "A lost card is blocked in the app at once. A new card arrives in five days. " * 8
    questions = ["When does a new card arrive?", "How do I block a card?", "What is a wire?"]
    prompts = [[Message("user", f"Context:\n{context}\n\nQuestion: {q}")] for q in questions]
    ids = [smollm.encode(p).token_ids for p in prompts]
    with Engine.open(tmp_path / "store", model=smollm, embedder=minilm) as engine:
        product = [engine.generate(p, max_tokens=16) for p in prompts]
    assert [p.usage.reused_tokens > 100 for p in product] == [False, True, True]
    assert BatchedModel().answer(ids, 16) == [p.text for p in product]


@needs_data
def test_each_span_question_is_asked_once_and_never_of_a_plan_that_saw_it() -> None:
    questions = tatqa(DATA, seed=0)
    asked = [a.id for fold in questions.folds for a in fold.asked]
    assert len(asked) == len(set(asked)) == 918
    rows = json.loads((DATA / "tatqa/dev.json").read_text("utf-8"))
    assert sum(len(fold.past) for fold in questions.folds) == sum(len(d["questions"]) for d in rows)
    texts = {p.text for p in questions.passages}
    for fold in questions.folds:
        assert all(texts.issuperset(a.expected) for a in fold.asked)
        # The same words may be asked of two documents; as a rule they are not.
        seen = [a for a in fold.asked if a.question in fold.past]
        assert len(seen) < len(fold.asked) / 10


@needs_data
def test_a_handful_of_questions_is_answered_and_compared(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import answer_quality

    out = tmp_path / "report.json"
    arguments = ["answer_quality.py", "--data", str(DATA), "--sets", "tatqa", "--size", "6"]
    arguments += ["--limit", "4", "--processes", "1"]
    arguments += ["--settings", "pinned", "--cache", str(tmp_path), "--out", str(out)]
    monkeypatch.setattr(sys, "argv", [*arguments, "--check", "2"])
    answer_quality.main()
    report = json.loads(out.read_text("utf-8"))["sets"]["tatqa"]["pinned"]
    assert report["answered"] == report["prompts"]["asked"] == 4
    assert report["product"] == {"asked": 2, "same_text": 2}
    assert report["pinned"]["recall"] >= report["plain"]["recall"]
    first, second = zip(*report["f1"].values(), strict=True)
    mean = sum(second) / 4 - sum(first) / 4
    assert report["difference"]["mean"] == pytest.approx(mean, abs=1e-3)
    # A question without pins has one prompt both ways, and one answer.
    misses = report["by_outcome"].get("miss", {"answered": 0})["answered"]
    assert len(KeptAnswers(tmp_path / "answer_quality.jsonl")) == 8 - misses
