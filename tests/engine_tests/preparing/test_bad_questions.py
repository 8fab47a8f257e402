"""Past questions that cannot be clustered as asked, and embeddings that are no numbers."""

import logging
from collections.abc import Callable, Sequence

import numpy as np
import pytest

from centroidkv import Engine
from centroidkv.errors import ConfigError
from centroidkv.types import FloatArray
from small_parts import HashEmbedder
from word_bank import QUESTIONS, ask, build_and_warm, search


class Stumbling(HashEmbedder):
    """Fails on some questions as a broken embedder does: with no numbers and no exception."""

    def embed(self, texts: Sequence[str]) -> FloatArray:
        found = super().embed(texts)
        found[[i for i, text in enumerate(texts) if "stumble" in text]] = np.nan
        return found


@pytest.mark.parametrize("clustering", ["spectral", "kmeans", "gmm", "agglomerative", "consensus"])
@pytest.mark.parametrize("count", [1, 2, 5])
def test_fewer_questions_than_clusters_make_a_cluster_each_at_most(
    engine: Engine, clustering: str, count: int
) -> None:
    report = engine.build(
        questions=QUESTIONS[:count], retriever=search, num_clusters=50, clustering=clustering
    )
    assert 1 <= report.num_clusters <= count
    assert engine.route(QUESTIONS[0]).is_admitted


class Deaf(HashEmbedder):
    """Embeds every question alike."""

    fingerprint = "d" * 64

    def embed(self, texts: Sequence[str]) -> FloatArray:
        return super().embed(["question"] * len(texts))


@pytest.mark.parametrize("settings", [{"num_clusters": 8}, {"num_clusters": "auto"}, {}])
def test_questions_that_are_all_alike_make_one_cluster(
    open_engine: Callable[..., Engine], settings: dict[str, object]
) -> None:
    engine = open_engine(embedder=Deaf())
    report = engine.build(
        questions=[f"is it free {i}" for i in range(30)], retriever=search, **settings
    )
    assert (report.num_questions, report.num_clusters) == (30, 1)
    assert engine.route("is it free").is_admitted


def test_a_question_that_is_repeated_counts_once(engine: Engine) -> None:
    report = engine.build(questions=["is it free"] * 40, retriever=search, num_clusters=8)
    assert (report.num_questions, report.num_clusters) == (1, 1)


@pytest.mark.parametrize("number", [3, "auto", None])
def test_a_build_with_a_nan_names_the_question(
    open_engine: Callable[..., Engine], number: object
) -> None:
    engine = open_engine(embedder=Stumbling())
    with pytest.raises(ConfigError, match=r"1 questions .*'stumble here'.* check the embedder"):
        engine.build(questions=[*QUESTIONS, "stumble here"], retriever=search, num_clusters=number)
    assert engine.router.plan is None


def test_a_request_with_a_nan_is_answered_without_a_route_and_not_remembered(
    open_engine: Callable[..., Engine], caplog: pytest.LogCaptureFixture
) -> None:
    engine = open_engine(embedder=Stumbling())
    build_and_warm(engine)
    with caplog.at_level(logging.WARNING):
        stumbled = ask(engine, "stumble over a lost card")
    assert stumbled.usage.cluster is None and stumbled.token_ids
    assert "NaN" in caplog.text
    assert engine.route("stumble").embedding.size == 0
    assert engine.route(QUESTIONS[0]).is_admitted
    engine.flush()
    report = engine.build(questions=QUESTIONS, retriever=search, num_clusters=3)
    assert report.num_questions == len(QUESTIONS)


def test_a_plan_of_another_embedder_is_left_alone_and_comes_back(
    open_engine: Callable[..., Engine], caplog: pytest.LogCaptureFixture
) -> None:
    with open_engine() as first:
        build_and_warm(first)
        plan = first.router.plan
        assert plan is not None
    with caplog.at_level(logging.WARNING), open_engine(embedder=Deaf()) as other:
        assert other.router.plan is None
        assert ask(other, QUESTIONS[0]).usage.cluster is None
    assert "another embedder" in caplog.text and "build()" in caplog.text
    again = open_engine()
    assert again.router.plan is not None and again.router.plan.id == plan.id
    assert again.route(QUESTIONS[0]).is_admitted
