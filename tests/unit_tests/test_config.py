"""Settings are checked when they are made, and a message names the setting."""

import dataclasses
import math

import pytest

from centroidkv.config import EngineConfig, Sampling
from centroidkv.errors import CentroidKVError, ConfigError
from centroidkv.plan_config import PlanConfig

KINDS = [Sampling, PlanConfig, EngineConfig]


@pytest.mark.parametrize("kind", KINDS)
def test_the_defaults_are_valid_and_frozen(kind) -> None:
    made = kind.of({})
    assert made == kind()
    name = dataclasses.fields(kind)[0].name
    with pytest.raises(dataclasses.FrozenInstanceError):
        setattr(made, name, 1)


@pytest.mark.parametrize("kind", KINDS)
def test_an_unknown_setting_names_itself_and_the_known_ones(kind) -> None:
    with pytest.raises(ConfigError) as caught:
        kind.of({"max_tokns": 3, "another": 1})
    message = str(caught.value)
    assert "another, max_tokns" in message
    assert all(f.name in message for f in dataclasses.fields(kind))


def test_a_config_error_is_a_value_error_and_ours() -> None:
    assert issubclass(ConfigError, ValueError) and issubclass(ConfigError, CentroidKVError)


def test_settings_are_taken_as_given() -> None:
    made = Sampling.of({"max_tokens": 1, "temperature": 0.5, "top_p": 1.0, "stop": ["a", "b"]})
    assert (made.max_tokens, made.temperature, made.stop) == (1, 0.5, ("a", "b"))
    assert PlanConfig.of({"num_clusters": 1, "radius_quantile": 1}).num_clusters == 1
    assert EngineConfig.of({"memory_budget_bytes": 0, "disk_budget_bytes": 0}).tenant == ""


@pytest.mark.parametrize(
    ("kind", "name", "value"),
    [
        (Sampling, "max_tokens", 0),
        (Sampling, "max_tokens", -3),
        (Sampling, "max_tokens", 2.5),
        (Sampling, "max_tokens", True),
        (Sampling, "max_tokens", None),
        (Sampling, "max_tokens", "9"),
        (Sampling, "temperature", -0.1),
        (Sampling, "temperature", math.nan),
        (Sampling, "top_p", 0),
        (Sampling, "top_p", 1.1),
        (Sampling, "top_p", math.nan),
        (Sampling, "stop", "END"),
        (Sampling, "stop", ["a", ""]),
        (Sampling, "stop", [3]),
        (PlanConfig, "num_clusters", 0),
        (PlanConfig, "num_clusters", 1.5),
        (PlanConfig, "pca_dim", 0),
        (PlanConfig, "max_pins", 0),
        (PlanConfig, "max_pin_tokens", -1),
        (PlanConfig, "retrieval_depth", 0),
        (PlanConfig, "radius_quantile", 0),
        (PlanConfig, "radius_quantile", 1.01),
        (EngineConfig, "memory_budget_bytes", -1),
        (EngineConfig, "disk_budget_bytes", 1.5),
        (EngineConfig, "disk_budget_bytes", "20GB"),
        (EngineConfig, "max_records", 0),
        (EngineConfig, "near_misses", 0),
        (EngineConfig, "max_clusters", 0),
        (EngineConfig, "fit_after", 0),
        (EngineConfig, "max_pins", 0),
        (EngineConfig, "online_radius", 0),
        (EngineConfig, "online_radius", 2),
        (EngineConfig, "chroma", "localhost:8000"),
        (EngineConfig, "chroma", ""),
    ],
)
def test_a_value_out_of_range_names_its_setting(kind, name: str, value: object) -> None:
    with pytest.raises(ConfigError, match=name):
        kind.of({name: value})


@pytest.mark.parametrize(
    ("kind", "name", "value"),
    [
        (Sampling, "temperature", "0.5"),
        (Sampling, "temperature", None),
        (Sampling, "top_p", "1"),
        (Sampling, "seed", "x"),
        (Sampling, "seed", 1.5),
        (Sampling, "stop", None),
        (Sampling, "stop", 3),
        (PlanConfig, "radius_quantile", "0.9"),
        (PlanConfig, "seed", "x"),
        (EngineConfig, "online_radius", "1"),
        (EngineConfig, "chroma", 8000),
        (EngineConfig, "tenant", None),
    ],
)
def test_a_value_of_the_wrong_kind_names_its_setting(kind, name: str, value: object) -> None:
    with pytest.raises(ConfigError, match=name):
        kind.of({name: value})
