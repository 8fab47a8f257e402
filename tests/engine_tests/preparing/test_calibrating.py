"""A bound on wrong answers: refused without labels, kept with them, in both places that serve."""

from collections.abc import Callable
from pathlib import Path

import pytest

from centroidkv import Engine
from centroidkv.errors import ConfigError, NotCalibrated
from centroidkv.langchain import CentroidKVAnswerCache, CentroidKVLLM
from word_bank import FRAMES, TOPICS, labelled, search


@pytest.fixture
def bounded(open_engine: Callable[..., Engine]) -> Engine:
    engine = open_engine(preset="paper", representative_form="answer", max_error=0.05)
    asked = [f.format(t) for t in TOPICS for f in FRAMES[:4]]
    engine.build(questions=asked, retriever=search, num_clusters=8, pca_dim=8)
    return engine


def test_a_bound_without_labels_says_how_to_get_one(bounded: Engine) -> None:
    bounded.generate("please block lost card", max_tokens=4)
    with pytest.raises(NotCalibrated, match=r"centroidkv calibrate pairs.csv") as caught:
        bounded.generate("block lost card today", max_tokens=4)
    assert isinstance(caught.value, ConfigError)
    with pytest.raises(NotCalibrated):
        CentroidKVAnswerCache(engine=bounded, max_error=0.05)


def test_a_calibrated_bound_serves_paraphrases_and_refuses_opposites(bounded: Engine) -> None:
    bounds = bounded.calibrate(labelled())
    assert [b.max_error for b in bounds] == [0.01, 0.02, 0.05]
    assert "at most 5.0% wrong" in str(bounds[-1])
    assert bounds[-1].threshold is not None
    first = bounded.generate("please block lost card", max_tokens=4)
    hit = bounded.generate("block lost card today", max_tokens=4)
    assert hit.usage.approximate
    assert hit.usage.error_bound == 0.05
    assert hit.text == first.text
    refused = bounded.generate("do not block lost card", max_tokens=4)
    assert (refused.usage.reason, refused.usage.approximate) == ("over_error_bound", False)
    exact = bounded.generate("do not block lost card", max_tokens=4, reuse="off")
    assert refused.token_ids == exact.token_ids


def test_a_representative_is_compared_by_the_vector_that_is_stored_with_it(
    bounded: Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    bounded.calibrate(labelled())
    bounded.generate("please block lost card", max_tokens=4)
    embedder, embedded = bounded.router.embedder, list[str]()
    embed = embedder.embed
    monkeypatch.setattr(embedder, "embed", lambda texts: (embedded.extend(texts), embed(texts))[1])
    assert bounded.generate("block lost card today", max_tokens=4).usage.approximate
    assert set(embedded) == {"block lost card today"}


def test_a_calibration_outlives_the_engine_and_belongs_to_its_embedder(
    bounded: Engine, open_engine: Callable[..., Engine]
) -> None:
    bounded.calibrate(labelled())
    bounded.close()
    assert open_engine().calibration is not None
    assert open_engine(tenant="another").calibration is None


def test_a_damaged_calibration_is_none_and_set_aside_for_the_next(
    bounded: Engine, open_engine: Callable[..., Engine]
) -> None:
    bounded.calibrate(labelled())
    bounded.close()
    (file,) = (bounded.store.path / "plans").glob("*.calibration")
    damaged = file.read_bytes()[:-7]
    file.write_bytes(damaged)
    engine = open_engine()
    assert engine.calibration is None
    engine.calibrate(labelled())
    kept = engine.store.path / "quarantine" / file.name
    assert engine.calibration is not None and kept.read_bytes() == damaged


def test_the_answer_cache_keeps_the_same_bound(open_engine: Callable[..., Engine]) -> None:
    engine = open_engine()
    engine.calibrate(labelled())
    cache = CentroidKVAnswerCache(engine=engine, max_error=0.05)
    llm = CentroidKVLLM(engine=engine, max_tokens=4, cache=cache)
    first = llm.generate(["please block lost card"]).generations[0][0]
    near = llm.generate(["block lost card today"]).generations[0][0]
    assert near.text == first.text
    note = near.generation_info["centroidkv_cache"]
    assert (note["calibrated"], note["error_bound"]) == (True, 0.05)
    other = llm.generate(["do not block lost card"]).generations[0][0]
    assert "centroidkv_cache" not in other.generation_info


def test_past_pairs_reach_the_score_of_the_answer_cache(
    open_engine: Callable[..., Engine], tmp_path: Path
) -> None:
    engine = open_engine()
    pairs = labelled()
    asked = {t for p in pairs[::3] for t in (p.question, p.candidate)}
    past = [p for p in pairs if (p.question, p.candidate) not in {
        (q.question, q.candidate) for q in pairs[::3]}]  # fmt: skip
    file = tmp_path / "past.csv"
    file.write_text("".join(f"{p.question},{p.candidate},{int(p.same_answer)}\n" for p in past))
    bound = engine.calibrate(pairs[::3], past_pairs=file)[-1]
    assert bound.num_pairs == len(pairs[::3])
    assert len(asked) > 1
    calibration = engine.calibration
    assert calibration is not None
    assert len(calibration.scorer.neighbours.vectors) == len(
        {t for p in past for t in (p.question, p.candidate)}
    )


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"max_error": 0.0}, "max_error must lie in"),
        ({"max_error": "x"}, "max_error must lie in"),
        ({"max_error": 0.1, "max_distance": 0.1}, "not both"),
    ],
)
def test_wrong_bounds_are_named(engine: Engine, settings: dict, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        CentroidKVAnswerCache(engine=engine, **settings)


def test_files_of_pairs_are_read_and_faults_named(engine: Engine, tmp_path: Path) -> None:
    file = tmp_path / "pairs.csv"
    rows = [f"{p.question},{p.candidate},{int(p.same_answer)}" for p in labelled()]
    file.write_text("\n".join(["question_a,question_b,same_answer", *rows]))
    assert len(engine.calibrate(file)) == 3
    file.write_text("question_a,question_b,same_answer\na,b,2\n")
    with pytest.raises(ConfigError, match=r"line 2.*label is '2'"):
        engine.calibrate(file)
