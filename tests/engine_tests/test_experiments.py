"""The experiments count what the package does: the same routes, the same Algorithm 1."""

from collections.abc import Callable

import numpy as np
import pytest
from experiments.corpora import Corpus, Split, split
from experiments.hits import hits, online
from experiments.sweeps import fitted
from experiments.tables import Found, figure, table1

from centroidkv import Engine
from small_parts import HashEmbedder
from word_bank import PASSAGES, QUESTIONS, search

UNSEEN = ["block my lost card now", "wire to another country", "repay early", "zebra stripes"]
LABELS = [name for name in PASSAGES for _ in range(3)]  # three questions to a passage
PAPER = {"num_clusters": 3, "pca_dim": 8, "clustering": "spectral"}


@pytest.fixture
def drawn() -> Split:
    texts = (*QUESTIONS, *UNSEEN)
    labels = np.array([*LABELS, "card", "wire", "loan", "nothing"])
    vectors = HashEmbedder().embed(texts)
    return Split(np.arange(9), np.arange(9, 13), vectors, labels, texts)


def test_questions_are_counted_as_an_engine_routes_and_answers_them(
    drawn: Split, open_engine: Callable[..., Engine]
) -> None:
    plan, seconds = fitted(drawn, PAPER)
    assert seconds > 0
    counted = hits(plan, drawn)
    engine = open_engine(preset="paper", representative_form="answer")
    engine.build(questions=QUESTIONS, retriever=search, **PAPER)
    engine.warm(lambda q: engine.generate(q, max_tokens=4))
    label_of = dict(zip(QUESTIONS, LABELS, strict=True))
    wrong, admitted = [], []
    for question, label in zip(UNSEEN, drawn.labels[9:], strict=True):
        usage = engine.generate(question, max_tokens=4).usage
        assert usage.outcome == "hit"
        wrong.append(label_of[usage.representative] != label)
        admitted.append(engine.route(question).is_admitted)
    assert counted.filled_wrong == np.mean(wrong) >= 0.25  # no answer fits the zebra
    assert counted.admitted == np.mean(admitted)
    assert (counted.num_clusters, counted.asked, counted.filled) == (3, 4, 1.0)


def test_the_miss_branch_is_that_of_algorithm_1(
    drawn: Split, open_engine: Callable[..., Engine]
) -> None:
    plan, _ = fitted(drawn, PAPER)
    counted = hits(plan, drawn)
    engine = open_engine(preset="paper", representative_form="answer")
    engine.build(questions=QUESTIONS, retriever=search, **PAPER)
    outcomes = [engine.generate(q, max_tokens=4).usage.outcome for q in UNSEEN]
    assert counted.online == outcomes.count("hit") / 4
    assert 0 < counted.online < 1


def test_the_past_questions_miss_once_a_cluster(drawn: Split) -> None:
    plan, _ = fitted(drawn, PAPER)
    own = Split(drawn.past, drawn.past, drawn.vectors, drawn.labels, drawn.texts)
    (row,) = figure(Found([swept("figure3")], [], [], []), "figure3", ("k_asked",))
    assert hits(plan, own).online == row["online_own"] == pytest.approx(1 - 3 / 9)


def test_the_first_question_of_a_cluster_misses_and_stands_for_it() -> None:
    asked, missed, wrong = online(np.array([0, 0, 1, 0, 1]), np.array(list("abbac")))
    assert (asked, missed, wrong) == (5, 2, 2)


def test_the_ceiling_is_what_so_many_labels_cover(drawn: Split) -> None:
    plan, _ = fitted(drawn, {**PAPER, "num_clusters": 1})
    counted = hits(plan, drawn)
    assert counted.ceiling == 0.25
    assert counted.reachable == 0.25
    assert counted.filled_wrong >= 1 - counted.reachable


def test_past_and_unseen_never_meet_and_the_unseen_stay_the_same() -> None:
    corpus = Corpus("x", tuple(map(str, range(50))), tuple("y" * 50), ())
    vectors = np.zeros((50, 2), np.float32)
    small, large = (split(corpus, vectors, seed=3, num_past=n) for n in (10, 40))
    for drawn in (small, large):
        assert sorted([*drawn.past, *drawn.unseen]) == list(range(50))
    assert list(small.unseen[:10]) == list(large.unseen)
    assert list(split(corpus, vectors, seed=4, num_past=10).past) != list(small.past)


def asked(way: str, seconds: float, method: str = "", **more: object) -> dict:
    told = {"first_s": seconds / 2, "whole_s": seconds, "cpu_s": seconds * 3, "reused_tokens": 5,
            "prompt_tokens": 10, "completion_tokens": 3, "outcome": "hit", "wrong": False,
            "route_s": 0.001}  # fmt: skip
    row = {"corpus": "x", "way": way, "method": method, "number": 0, "text": way}
    return row | told | more


def swept(name: str, **more: object) -> dict:
    row = {"corpus": "x", "figure": name, "seed": 0, "num_past": 9, "clustering": "spectral",
           "pca_dim": 8, "k_asked": 3, "fit_s": 1.0, "lookup_ms": 1.0, "num_clusters": 3,
           "asked": 4, "filled": 1.0, "filled_wrong": 0.5, "online": 0.75, "online_wrong": 0.5,
           "streamed": 4, "admitted": 0.5, "admitted_wrong": 0.0, "ceiling": 0.6,
           "reachable": 0.5}  # fmt: skip
    return row | more


def test_means_over_a_stream_are_composed_of_hits_and_misses() -> None:
    times = [asked("plain", 4.0), asked("cag", 2.0), asked("answer", 0.1, "spectral", wrong=True)]
    found = Found([swept("table1"), swept("figure3")], [], times, [])
    rows = {r["way"]: r for r in table1(found)}
    assert rows["cag"]["improvement_mean"] == 0
    assert rows["plain"]["improvement_mean"] == -1
    answer = rows["answer"]
    assert answer["cpu_mean_s"] == pytest.approx(0.3)
    assert answer["improvement_cpu_mean"] == pytest.approx(1 - 0.3 / 6)
    assert answer["mean_online_s"] == pytest.approx(0.75 * 0.1 + 0.25 * 4)
    assert answer["improvement_mean_admitted"] == pytest.approx(1 - answer["mean_admitted_s"] / 2)
    assert (answer["filled_wrong"], answer["sample_wrong"], answer["reused_share"]) == (0.5, 1, 0.5)
    assert (answer["same_text_as_plain"], rows["plain"]["same_text_as_plain"]) == (0, 1)
    (point,) = figure(found, "figure3", ("k_asked",))
    assert point["answer_filled_s"] == pytest.approx(0.1)
    assert point["answer_online_s"] == pytest.approx(answer["mean_online_s"])
    assert point["answer_cpu_online_s"] == answer["cpu_online_s"] == pytest.approx(3.225)
