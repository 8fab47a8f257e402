"""Two models over one store share the clusters and the traffic, and nothing else."""

from collections.abc import Callable

import pytest

from centroidkv import Engine, ModelTrial
from centroidkv.errors import ConfigError
from centroidkv.models.loading import wrap_model
from centroidkv.models.transformers_model import TransformersModel
from centroidkv.routing.share import is_in_share
from langchain_parts import chat_chain
from small_parts import HERMES_CALLS, make_llama, make_tokenizer
from word_bank import QUESTIONS, ask, build_and_warm

ASKED = [f"{q} please" for q in QUESTIONS] + [f"{q} now" for q in QUESTIONS]


@pytest.fixture(scope="module")
def other_model() -> TransformersModel:
    return wrap_model(make_llama(seed=1), make_tokenizer())


@pytest.fixture
def trial(engine: Engine, other_model: TransformersModel):
    build_and_warm(engine)
    with ModelTrial.begin(engine, other_model, share=0.4) as trial:
        yield trial


def answers(engine: Engine, **options: object) -> dict[str, tuple[int, ...]]:
    return {q: ask(engine, q, **options).token_ids for q in ASKED}


def test_each_question_is_answered_by_its_model_as_by_that_model_alone(
    engine: Engine, trial: ModelTrial, open_engine: Callable[..., Engine], other_model
) -> None:
    report = trial.warm(lambda q: ask(trial, q))
    assert report.filled == report.num_clusters == 3, "the same clusters, filled for the new model"
    both = answers(trial)
    old = answers(engine, reuse="off")
    new = answers(open_engine(model=other_model), reuse="off")
    salt = trial._learner.namespace
    expected = {q: (new if is_in_share(q, 0.4, salt=salt) else old)[q] for q in ASKED}
    assert both == expected
    assert both not in (old, new) and all(old[q] != new[q] for q in ASKED)
    assert both == answers(trial), "a question always meets the same model"
    assert trial.check().is_clean and engine.check().is_clean


def test_figures_are_kept_apart_by_model(engine: Engine, trial: ModelTrial) -> None:
    trial.warm(lambda q: ask(trial, q))
    for question in ASKED:
        ask(trial, question)
    rows = trial.figures()
    assert set(rows) == {engine.model.fingerprint, trial.model.fingerprint}
    (old,), (new,) = rows[engine.model.fingerprint], rows[trial.model.fingerprint]
    share = sum(is_in_share(q, 0.4, salt=trial._learner.namespace) for q in ASKED)
    assert (old.requests, new.requests) == (len(ASKED) - share, share)
    assert old.hits > 0 and new.hits > 0
    assert old.plan == new.plan == engine.router.plan.id


def test_a_promotion_sends_all_to_the_new_model_and_a_rollback_none(
    engine: Engine, trial: ModelTrial
) -> None:
    old = answers(engine)
    trial.promote()
    new = answers(trial)
    assert all(new[q] != old[q] for q in ASKED)
    trial.rollback()
    assert answers(trial) == old
    assert ask(trial, ASKED[0]).usage.outcome == "hit", (
        "the KV of the model in force is still there"
    )


def test_the_models_never_meet_each_others_kv(trial: ModelTrial) -> None:
    """Without warming the new model begins with nothing, though the store is full."""
    trial.promote()
    done = ask(trial, ASKED[0])
    assert (done.usage.outcome, done.usage.reason) == ("miss", "other_model")
    assert done.usage.cluster is not None


def test_a_chain_takes_a_trial_as_its_engine(engine: Engine, trial: ModelTrial) -> None:
    chain = chat_chain(trial)
    assert trial.warm(chain.invoke).filled == 3
    for question in ASKED:
        assert chain.invoke(question).content
    rows = trial.figures()
    assert all(sum(f.hits for f in found) > 0 for found in rows.values())


def test_tenants_keep_apart_in_a_trial(engine: Engine, trial: ModelTrial) -> None:
    other = trial.for_tenant("other")
    assert isinstance(other, ModelTrial) and other.for_tenant("") is trial
    done = ask(other, ASKED[0])
    assert done.usage.reused_tokens == 0 and done.usage.plan is None
    trial.rollback()
    assert (
        other.generate("x", max_tokens=2).token_ids == engine.generate("x", max_tokens=2).token_ids
    )


def test_a_mistake_is_named(engine: Engine, other_model: TransformersModel) -> None:
    for share in (0, 1, 1.5, "x", None):
        with pytest.raises(ConfigError, match="share must be"):
            ModelTrial.begin(engine, other_model, share=share)
    with pytest.raises(ConfigError, match="in force already"):
        ModelTrial.begin(engine, engine.model)
    tokenizer = make_tokenizer()
    tokenizer.chat_template = HERMES_CALLS
    with pytest.raises(ConfigError, match="tool calls in another form"):
        ModelTrial.begin(engine, wrap_model(make_llama(seed=2), tokenizer))
    with ModelTrial.begin(engine, other_model) as trial:
        pass
    with pytest.raises(ConfigError, match="closed"):
        ask(trial, QUESTIONS[0])
    assert engine.generate("still there", max_tokens=2).usage.completion_tokens == 2
