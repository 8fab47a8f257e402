"""What a store will take and what it will spare, before anything is built.

Sizes follow from the model's config, and from its codec report where there is one. Everything
that is a typical value, not one of this model or machine, is named so in the result.
"""

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

from centroidkv.config import EngineConfig
from centroidkv.errors import ConfigError
from centroidkv.opening import open_model
from centroidkv.precision.codec_report import CodecReport, read_reports
from centroidkv.protocols import CausalModel
from centroidkv.settings import is_count, is_number, require

if TYPE_CHECKING:
    from centroidkv.models.kv_size import KVSize

GB = 1_000_000_000
# How many times smaller than bfloat16 a level's files are, on the bundled model.
TYPICAL_RATIOS: Mapping[str, float] = {"q8": 2.96, "q5k4v": 4.73, "q4": 5.43, "q3": 6.75}
# Seconds until a tier's first byte: a file, a request over the network.
TYPICAL_LATENCIES: Mapping[str, float] = {"memory": 0.0, "disk": 0.001, "remote": 0.05}
_SHORT = 256
_MOST_MEASURED = 2048

__all__ = ["Estimate", "LevelEstimate", "TimedPrefill", "estimate", "estimate_model"]


@dataclass(frozen=True, slots=True)
class TimedPrefill:
    """How many prompt tokens a second a model computes, in a prompt of `num_tokens`."""

    num_tokens: int
    tokens_per_s: float


@dataclass(frozen=True, slots=True)
class LevelEstimate:
    """A store with KV at one level.

    `saved_s_per_gb` is the prefill that a gigabyte spares each time all of it is used.
    `break_even` has the bytes a second of each tier above which loading beats computing, None
    where it never does. Both need a prefill speed.
    """

    level: str
    bytes_per_token: float
    store_bytes: int
    saved_s_per_gb: float | None
    break_even: dict[str, float | None] | None


@dataclass(frozen=True, slots=True)
class Estimate:
    """A store of `num_clusters` prefixes of `num_tokens` each.

    `sizes_are` those of the model's codec report, `measured`, or `typical` ones. `prefill` is what
    was timed, a short prompt and a long one.
    """

    kv_bytes_per_token: int
    dtype: str
    num_clusters: int
    num_tokens: int
    prefill_tokens_per_s: float | None
    sizes_are: str
    latencies_s: Mapping[str, float]
    levels: tuple[LevelEstimate, ...]
    prefill: tuple[TimedPrefill, ...] = ()


def estimate_model(
    source: str,
    *,
    num_clusters: int,
    num_tokens: int,
    dtype: str | None = None,
    prefill_tokens_per_s: float | None = None,
    measure: bool = False,
    store: Path | None = None,
) -> Estimate:
    """Work out what a store of a model will take; see `estimate`.

    Weights are loaded only to `measure` the prefill, or where the config does not tell the size.

    Args:
        source: As for `Engine.open`.
        num_clusters: How many clusters the store will have.
        num_tokens: How many tokens the prefix of each has.
        dtype: A torch dtype's name, as for `Engine.open`.
        prefill_tokens_per_s: The prefill speed, if it is known.
        measure: Load the model and time its prefill.
        store: A store whose codec report on this model tells the sizes.

    Raises:
        ConfigError: A number is not above zero.
        ModelError: There is no such model, or its KV cannot be stored.
    """
    from centroidkv.models.kv_size import KVSize, kv_size
    from centroidkv.models.transformers_model import TransformersModel

    reports = read_reports(store) if store is not None else []
    size = kv_size(source, dtype=dtype)
    prefill: tuple[TimedPrefill, ...] = ()
    report = report_on(size, reports) if size is not None else None
    if measure or size is None:
        model = open_model(source, None, EngineConfig(dtype=dtype))
        assert isinstance(model, TransformersModel)
        shape = model.shape
        item, kind = shape.dtype.itemsize, str(shape.dtype).removeprefix("torch.")
        size = KVSize(shape.bytes_per_token // item, shape.bytes_per_token, kind)
        report = next((r for r in reports if r.model == model.fingerprint), None)
        prefill = measured_prefill(model, num_tokens) if measure else ()
    found = estimate(
        size,
        num_clusters=num_clusters,
        num_tokens=num_tokens,
        prefill_tokens_per_s=prefill[-1].tokens_per_s if prefill else prefill_tokens_per_s,
        report=report,
    )
    return replace(found, prefill=prefill)


def estimate(
    size: "KVSize",
    *,
    num_clusters: int,
    num_tokens: int,
    prefill_tokens_per_s: float | None = None,
    report: CodecReport | None = None,
) -> Estimate:
    """Work out sizes and break-evens of a store.

    Raises:
        ConfigError: A number is not above zero.
    """
    for name, count in (("clusters", num_clusters), ("tokens", num_tokens)):
        require(is_count(count, 1), f"{name} must be a whole number of at least 1, not {count!r}")
    speed = prefill_tokens_per_s
    require(
        speed is None or (is_number(speed) and speed > 0),
        f"the prefill speed must be a number of tokens a second above 0, not {speed!r}",
    )
    levels: list[LevelEstimate] = []
    for level, per_token, decode in _levels(size, report):
        saved = break_even = None
        if speed is not None:
            saved = GB / per_token / speed
            left_s = num_tokens / speed - (num_tokens / decode if decode else 0.0)
            break_even = {
                # Memory holds KV decoded.
                "memory": size.num_bytes * speed,
                **{t: _bandwidth(num_tokens * per_token, left_s, t) for t in ("disk", "remote")},
            }
        whole = round(num_clusters * num_tokens * per_token)
        levels.append(LevelEstimate(level, round(per_token, 1), whole, saved, break_even))
    return Estimate(
        kv_bytes_per_token=size.num_bytes,
        dtype=size.dtype,
        num_clusters=num_clusters,
        num_tokens=num_tokens,
        prefill_tokens_per_s=speed,
        sizes_are="measured" if report is not None else "typical",
        latencies_s=TYPICAL_LATENCIES,
        levels=tuple(levels),
    )


def _levels(size: "KVSize", report: CodecReport | None) -> list[tuple[str, float, float | None]]:
    """Return each level's bytes a token and, if measured, the tokens a second it decodes."""
    if report is not None:
        return [(f.level, f.bytes_per_token, f.decode_tokens_per_s) for f in report.levels]
    coded = [(level, 2 * size.num_numbers / r, None) for level, r in TYPICAL_RATIOS.items()]
    return [("raw", float(size.num_bytes), None), *coded]


def _bandwidth(num_bytes: float, left_s: float, tier: str) -> float | None:
    left_s -= TYPICAL_LATENCIES[tier]
    return num_bytes / left_s if left_s > 0 else None


def report_on(size: "KVSize", reports: Sequence[CodecReport]) -> CodecReport | None:
    """Return the report on a model whose KV has this size, dtype included; of several, none."""
    fitting = [
        r
        for r in reports
        if r.numbers_per_token == size.num_numbers
        and _raw_bytes(r) / 2 < size.num_bytes <= _raw_bytes(r)
    ]
    return fitting[0] if len(fitting) == 1 else None


def _raw_bytes(report: CodecReport) -> float:
    """Return what a token takes in raw files: its numbers in the model's dtype, and a header."""
    return next((f.bytes_per_token for f in report.levels if f.level == "raw"), 0.0)


def measured_prefill(model: CausalModel, num_tokens: int) -> tuple[TimedPrefill, TimedPrefill]:
    """Compute a short prompt and one of `num_tokens`, at most 2,048, and time both.

    Raises:
        ConfigError: The model's context is too short to measure in.
    """
    most = min(num_tokens, _MOST_MEASURED, model.context_tokens - 1)
    ids = model.encode("The quick brown fox is not so quick. " * _MOST_MEASURED).token_ids
    if most < 2:
        raise ConfigError(f"a context of {model.context_tokens} tokens is too short to measure in")
    _timed(model, ids[: min(16, most)])  # the first forward of a process is a slow one
    return _timed(model, ids[: min(_SHORT, most)]), _timed(model, ids[:most])


def _timed(model: CausalModel, ids: Sequence[int]) -> TimedPrefill:
    sequence = model.open_sequence(len(ids) + 1)
    try:
        begin = time.perf_counter()
        sequence.prefill(ids)
        return TimedPrefill(len(ids), len(ids) / (time.perf_counter() - begin))
    finally:
        sequence.close()
