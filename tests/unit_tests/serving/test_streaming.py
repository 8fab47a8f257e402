"""The policy on links that exist as traces: never far from the best, never worse than computing."""

from collections.abc import Callable, Sequence

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from centroidkv.kv.bandwidth import Meter, Tier
from centroidkv.serving.prefill_speed import PrefillSpeed
from centroidkv.serving.simulation import Machine, Replay, Trace, simulate
from centroidkv.serving.streaming import Outlook, Source, StreamingPolicy

# SmolLM2-135M: 64 tokens of 23,040 bytes in bfloat16; levels as multiples smaller.
BLOCK_BYTES = 64 * 23_040
SMALLER = {"raw": 1.0, "q8": 1.94, "q5k4v": 3.7, "q4": 4.4, "coarsest": 5.8}
DECODE_S = {
    "raw": 0.0,
    "q8": BLOCK_BYTES / 6e8,
    "q5k4v": BLOCK_BYTES / 4e8,
    "q4": BLOCK_BYTES / 4e8,
    "coarsest": BLOCK_BYTES / 1e8,
}
NUM_BLOCKS, END = 31, 2040
REST = (64 * NUM_BLOCKS, END)


def prefill_s(num_tokens: int, behind: int) -> float:
    return 0.05 + 0.0022 * num_tokens + 2e-7 * num_tokens * (behind + num_tokens / 2)


MACHINE = Machine(prefill_s, DECODE_S)
RECOMPUTE_S = prefill_s(END, 0)


def sources(levels: Sequence[str] = tuple(SMALLER), tier: Tier = "remote") -> list[Source]:
    sizes = {level: int(BLOCK_BYTES / SMALLER[level]) for level in levels}
    return [Source(64 * i, 64 * (i + 1), tier, sizes, BLOCK_BYTES) for i in range(NUM_BLOCKS)]


def adaptive(
    objective_s: float | None = None,
) -> Callable[[Meter, PrefillSpeed], StreamingPolicy]:
    """Make a policy that knows how this machine computes and decodes, and nothing of the link."""

    def make(meter: Meter, speed: PrefillSpeed) -> StreamingPolicy:
        for num_tokens, behind in ((56, 1984), (256, 0), (256, 1024), (END, 0)):
            speed.timed(num_tokens, prefill_s(num_tokens, behind), behind=behind)
        for level, seconds in DECODE_S.items():
            meter.decoded(level, BLOCK_BYTES, seconds)
        return StreamingPolicy(meter, speed, objective_s=objective_s)

    return make


class LoadAll(StreamingPolicy):
    """The fixed choice: everything at one level, whatever the link does."""

    def __init__(self, level: str) -> None:
        self._fixed = level

    def wait_s(self, outlook: Outlook) -> float:
        return 1e6

    def level(self, source: Source, outlook: Outlook) -> str:
        return self._fixed


def replay(trace: Trace, *, objective_s: float | None = None, machine: Machine = MACHINE) -> Replay:
    done = simulate(sources(), REST, trace, machine, adaptive(objective_s))
    # Nothing is lost, and nothing counted twice.
    assert done.loaded_tokens + done.recomputed_tokens == 64 * NUM_BLOCKS
    return done


def best_fixed_s(trace: Trace) -> float:
    loads = [
        simulate(sources(), REST, trace, MACHINE, lambda *_, fixed=level: LoadAll(fixed)).ttft_s
        for level in SMALLER
    ]
    return min(RECOMPUTE_S, *loads)


@pytest.mark.parametrize("latency_s", [0.0, 0.01, 0.05])
@pytest.mark.parametrize("mbit", [5, 20, 100, 300, 1000, 10_000])
def test_a_steady_link_costs_at_most_a_tenth_more_than_the_best_fixed_choice(
    mbit: int, latency_s: float
) -> None:
    trace = Trace.steady(mbit * 1e6, latency_s)
    assert replay(trace).ttft_s <= 1.1 * best_fixed_s(trace)


def test_raw_alone_is_loaded_on_a_fast_link_and_computed_on_a_slow_one() -> None:
    for mbit, computed in ((10_000, 0), (2, 64 * NUM_BLOCKS - 256)):
        link = Trace.steady(mbit * 1e6)
        done = simulate(sources(["raw"]), REST, link, MACHINE, adaptive())
        assert set(done.levels) <= {"raw"}
        assert done.recomputed_tokens >= computed
        assert (done.recomputed_tokens == 0) is (mbit == 10_000)


def test_an_outage_in_the_middle_is_computed_over() -> None:
    trace = Trace(((0.0, 12.5e6), (0.3, 0.0)))
    done = replay(trace)
    assert 0 < done.loaded_tokens < 64 * NUM_BLOCKS
    assert done.ttft_s <= 1.1 * RECOMPUTE_S
    # A read that fails at once instead of hanging costs no more.
    failing = Machine(prefill_s, DECODE_S, read_timeout_s=0.1)
    assert replay(trace, machine=failing).ttft_s <= 1.1 * RECOMPUTE_S


def test_the_finest_level_that_meets_the_objective_is_loaded() -> None:
    link = Trace.steady(1e9)
    fine, coarse = replay(link, objective_s=3.0), replay(link)
    assert set(fine.levels) == {"raw"}
    assert "raw" not in coarse.levels
    assert coarse.ttft_s < fine.ttft_s <= 3.0
    # Where the link becomes slower on the way, levels become coarser.
    turning = replay(Trace(((0.0, 1.25e8), (0.2, 1e7))), objective_s=2.0)
    assert {"raw", "coarsest"} <= set(turning.levels)
    assert turning.ttft_s <= 2.0


@pytest.mark.parametrize("mbit", [100, 300, 1000, 3000])
def test_an_objective_is_met_with_finer_levels_the_more_time_there_is(mbit: int) -> None:
    trace = Trace.steady(mbit * 1e6, 0.01)
    best_s = best_fixed_s(trace)
    finest = []
    for spare in (1.2, 2.0, 4.0):
        done = replay(trace, objective_s=spare * best_s)
        assert done.ttft_s <= spare * best_s
        finest.append(done.loaded_bytes)
    assert finest == sorted(finest)


rates = st.sampled_from([0.0, 1e4, 1e6, 1e7, 1e8, 1e9])
steps = st.lists(st.tuples(st.floats(0.05, 1.0), rates), min_size=1, max_size=6)


@settings(max_examples=30, deadline=None)
@given(steps=steps, latency_s=st.sampled_from([0.0, 0.02, 0.3]), spare=st.floats(1.2, 2.0))
def test_whatever_the_link_does_an_objective_that_computing_would_meet_is_met(
    steps: list[tuple[float, float]], latency_s: float, spare: float
) -> None:
    times = [sum(length for length, _ in steps[:i]) for i in range(len(steps))]
    trace = Trace(tuple(zip(times, (rate for _, rate in steps), strict=True)), latency_s)
    objective_s = spare * RECOMPUTE_S
    assert replay(trace, objective_s=objective_s).ttft_s <= objective_s
    # Without an objective a hanging load holds nobody longer than computing, plus one piece.
    piece_s = prefill_s(256, 1792)
    assert replay(trace).ttft_s <= RECOMPUTE_S * 1.1 + 2 * piece_s
