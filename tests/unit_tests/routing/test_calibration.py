"""A bound that is promised is kept, and what cannot be promised is not served."""

import json
from pathlib import Path

import numpy as np
import pytest

from centroidkv.errors import CacheCorrupt, CacheMismatch, ConfigError
from centroidkv.routing.calibration import (
    Calibration,
    LabelledPair,
    fit_calibration,
    read_pairs,
)
from centroidkv.routing.pair_conflicts import conflict, words
from centroidkv.routing.risk import fewest_served, find_threshold, upper_limit

DIM = 16
UNKNOWN = "a word that no labelled pair contains"
NOUNS = ["card", "loan", "fund", "wire", "fee", "app", "branch", "statement", "salary", "pension"]


def embedded(texts):
    """Embed "<noun> <serial> <noise>": vectors of one noun lie close to each other."""
    rows = []
    for text in texts:
        noun = next((n for n in NOUNS if n in text), "card")
        own = np.random.default_rng(abs(hash_of(text)))
        centre = np.random.default_rng(NOUNS.index(noun)).standard_normal(DIM)
        rows.append(centre + own.standard_normal(DIM) * own.uniform(0.1, 1.0))
    vectors = np.array(rows)
    return (vectors / np.linalg.norm(vectors, axis=1, keepdims=True)).astype(np.float32)


def hash_of(text):
    return int.from_bytes(text.encode()[-7:], "big") + len(text) * 1009


def made_pairs(count=400, seed=0):
    random = np.random.default_rng(seed)
    pairs = []
    for _ in range(count):
        same = bool(random.random() < 0.7)
        one, other = random.choice(NOUNS, 2, replace=False)
        tail = random.permutation(["please", "today", "quickly", "again"])[:2]
        question = f"tell me about the {one} {tail[0]}"
        pairs.append(LabelledPair(question, f"about my {one if same else other} {tail[1]}", same))
    return pairs


@pytest.fixture(scope="module")
def fitted():
    return fit_calibration(made_pairs(), embedded, embedder_fingerprint="e")


def decided(calibration, question, candidate, max_error=0.05):
    u, v = embedded([question, candidate])
    return calibration.decide(question, candidate, u, v, max_error=max_error)


def test_upper_limit_is_that_of_clopper_and_pearson() -> None:
    assert upper_limit(0, 59) == pytest.approx(1 - 0.05 ** (1 / 59))
    assert upper_limit(1, 100) == pytest.approx(0.04655981)
    assert upper_limit(0, 0) == 1.0
    assert [fewest_served(e) for e in (0.01, 0.02, 0.05)] == [299, 149, 59]


@pytest.mark.parametrize("max_error", [0.02, 0.05])
def test_true_error_exceeds_the_bound_in_at_most_one_run_of_twenty(max_error) -> None:
    runs, broken = 300, 0
    for seed in range(runs):
        random = np.random.default_rng(seed)
        scores = random.random(1500)
        # A pair with score s is wrong with probability (1 - s)^2 / 2; the error of all above t
        # is (1 - t)^2 / 6.
        same = random.random(1500) >= (1 - scores) ** 2 / 2
        threshold = find_threshold(scores, same, max_error).threshold
        broken += threshold is not None and (1 - threshold) ** 2 / 6 > max_error
    assert broken <= 0.05 * runs + 2 * (runs * 0.05 * 0.95) ** 0.5


def test_nothing_is_served_where_labels_cannot_show_the_bound(fitted) -> None:
    few = find_threshold(np.linspace(1, 0, 298), np.ones(298, bool), 0.01)
    assert few.threshold is None
    assert "nothing is served" in str(few)
    assert find_threshold(np.linspace(1, 0, 299), np.ones(299, bool), 0.01).num_served == 299
    coins = np.random.default_rng(0).random(2000) < 0.5
    assert find_threshold(np.linspace(1, 0, 2000), coins, 0.05).threshold is None
    refused = decided(fitted, "about my card today", "about my card today", max_error=0.001)
    assert (refused.serve, refused.threshold) == (False, None)
    assert "no threshold" in refused.reason


def test_pairs_of_one_score_are_served_together() -> None:
    same = np.r_[np.ones(400, bool), np.zeros(400, bool)]
    assert find_threshold(np.zeros(800), same, 0.05).threshold is None


@pytest.mark.parametrize("bad", [0.0, 1.0, -1.0, float("nan")])
def test_a_bound_outside_zero_and_one_is_refused(fitted, bad) -> None:
    with pytest.raises(ConfigError, match="between 0 and 1"):
        fitted.threshold(bad)


def test_it_serves_the_alike_and_not_the_others(fitted) -> None:
    assert fitted.threshold(0.05) is not None
    assert decided(fitted, "tell me about the card today", "about my card today").serve
    assert not decided(fitted, "tell me about the card today", "about my loan again").serve


@pytest.mark.parametrize(
    ("question", "candidate", "reason"),
    [
        ("Is the card working?", "Is the card not working?", "negation differs"),
        ("the card works", "the card doesn't work", "negation differs"),
        ("the card is active", "the card is inactive", "opposite words"),
        ("How do I enable the card?", "How do I disable the card?", "opposite words"),
        ("Opening my card", "Closing my card", "opposite words"),
        ("the card before noon", "the card after noon", "opposite words"),
        ("my card of 2 weeks", "my card of three weeks", "numbers differ"),
        ("wire from savings to loan", "wire from loan to savings", "phrases exchanged"),
        ("paid before it was blocked", "blocked before it was paid", "phrases exchanged"),
        ("a wire to China, how long?", "how long is a wire from China?", "direction differs"),
        ("not all cards work", "all cards do not work", "negation differs"),
        ("my card payment failed", "my card payment", "negation differs"),
        (
            "about my card today",
            "about my xylophone card today",
            "a word that no labelled pair contains",
        ),
    ],
)
def test_exact_negations_are_never_served(fitted, question, candidate, reason) -> None:
    for one, other in ((question, candidate), (candidate, question)):
        vector = embedded(["about my card today"])[0]
        got = fitted.decide(one, other, vector, vector, max_error=0.9)
        assert (got.serve, got.reason) == (False, reason)


def test_the_same_words_do_not_conflict() -> None:
    assert conflict(words("I can't log in"), words("i cannot log in")) is None
    assert conflict(words("two cards"), words("2 cards")) is None
    assert conflict(words("My card hasn't arrived"), words("my card has not arrived yet")) is None


def test_scores_are_symmetric(fitted) -> None:
    for pair in made_pairs(30, seed=5):
        there = decided(fitted, pair.question, pair.candidate)
        assert decided(fitted, pair.candidate, pair.question) == there


def test_fits_are_deterministic_and_survive_a_file(fitted, tmp_path: Path) -> None:
    fitted.save(tmp_path / "one")
    fit_calibration(made_pairs(), embedded, embedder_fingerprint="e").save(tmp_path / "two")
    assert (tmp_path / "one").read_bytes() == (tmp_path / "two").read_bytes()
    loaded = Calibration.load(tmp_path / "one", embedder_fingerprint="e")
    assert loaded.report() == fitted.report()
    for pair in made_pairs(30, seed=5):
        again = decided(loaded, pair.question, pair.candidate)
        assert again == decided(fitted, pair.question, pair.candidate)


def test_past_pairs_leave_all_pairs_to_the_threshold() -> None:
    asked = set(made_pairs())
    past_pairs = [p for p in made_pairs(600, seed=1) if p not in asked]
    fit = fit_calibration(made_pairs(), embedded, embedder_fingerprint="e", past_pairs=past_pairs)
    assert fit.bound(0.05).num_pairs == 400
    assert fit.threshold(0.05) is not None


def test_past_pairs_survive_a_file_and_must_be_others(tmp_path: Path) -> None:
    asked = set(made_pairs())
    past = [p for p in made_pairs(600, seed=1) if p not in asked]
    fit = fit_calibration(made_pairs(), embedded, embedder_fingerprint="e", past_pairs=past)
    assert len(fit.scorer.neighbours.vectors)
    fit.save(tmp_path / "kept")
    loaded = Calibration.load(tmp_path / "kept", embedder_fingerprint="e")
    for pair in made_pairs(30, seed=5):
        again = decided(loaded, pair.question, pair.candidate)
        assert again == decided(fit, pair.question, pair.candidate)
    with pytest.raises(ConfigError, match=r"400 pairs stand in both lists.*take them out"):
        fit_calibration(
            made_pairs(), embedded, embedder_fingerprint="e", past_pairs=[*made_pairs(), *past]
        )


def test_vectors_that_are_not_finite_are_refused_and_never_served(fitted) -> None:
    def failing(texts):
        vectors = embedded(texts)
        vectors[texts.index("about my card today")] = np.nan
        return vectors

    with pytest.raises(ConfigError, match=r"'about my card today' is not finite"):
        fit_calibration(made_pairs(), failing, embedder_fingerprint="e")
    text, vector = "about my card today", embedded(["about my card today"])[0]
    asked = {"u": np.full_like(vector, np.nan), "v": vector, "max_error": 0.9}
    assert not fitted.decide(text, text, **asked).serve


@pytest.mark.parametrize("label", [2, None, "1", 0.5])
def test_a_label_that_is_none_is_named(label) -> None:
    pairs = [*made_pairs(30), LabelledPair("a", "b", label)]
    with pytest.raises(ConfigError, match="same_answer of pair 31"):
        fit_calibration(pairs, embedded, embedder_fingerprint="e")


def test_foreign_and_damaged_files_are_refused(fitted, tmp_path: Path) -> None:
    path = tmp_path / "calibration"
    fitted.save(path)
    whole = path.read_bytes()
    with pytest.raises(CacheMismatch, match="embedder"):
        Calibration.load(path, embedder_fingerprint="another")
    flipped = bytearray(whole)
    flipped[len(whole) // 2] ^= 1
    for damaged in (
        b"",
        b"\x80\x04",
        whole[:-1],
        whole[:40],
        bytes(flipped),
        json.dumps({}).encode(),
    ):
        path.write_bytes(damaged)
        with pytest.raises(CacheCorrupt):
            Calibration.load(path, embedder_fingerprint="e")
    path.write_bytes(whole.replace(b"calibration-2", b"calibration-9", 1))
    with pytest.raises(CacheMismatch, match="format"):
        Calibration.load(path, embedder_fingerprint="e")
    with pytest.raises(CacheCorrupt):
        Calibration.load(tmp_path / "absent", embedder_fingerprint="e")


def test_pairs_are_read(tmp_path: Path) -> None:
    path = tmp_path / "pairs.csv"
    path.write_text('question_a,question_b,same_answer\n"a, b",c,1\n\nd,e,false\n', "utf-8")
    assert read_pairs(path) == [LabelledPair("a, b", "c", True), LabelledPair("d", "e", False)]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "no pairs"),
        ("question_a,question_b,same_answer\n", "no pairs"),
        ("a,b,1\nc,d\n", "line 2: the label is missing"),
        ("a,b,1\nc,d,\n", "line 2: the label is missing"),
        ("a,b,1\nc,d,maybe\n", "line 2: the label is 'maybe'"),
        ("a,b,1\nc,,0\n", "line 2: a question is empty"),
        ("a,b,1\nc,d,e,0\n", "line 2: 4 columns"),
        ("a,b,1\nc,d,1\n", "labelled 1; add pairs labelled 0"),
    ],
)
def test_a_file_that_cannot_be_used_names_line_and_remedy(tmp_path, text, message) -> None:
    path = tmp_path / "pairs.csv"
    path.write_text(text, "utf-8")
    with pytest.raises(ConfigError, match=message):
        read_pairs(path)


def test_too_few_pairs_are_refused() -> None:
    with pytest.raises(ConfigError, match="cannot read"):
        read_pairs("/nowhere/pairs.csv")
    with pytest.raises(ConfigError, match="label at least"):
        fit_calibration(made_pairs(20), embedded, embedder_fingerprint="e")
