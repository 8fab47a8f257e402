"""The meter finds what a link is, whichever way it is read."""

import pytest

from centroidkv.kv.bandwidth import Meter

MBIT = 125_000.0


class Clock:
    now = 0.0

    def __call__(self) -> float:
        return self.now


def read(meter: Meter, clock: Clock, num_bytes: int, rate: float, latency_s: float) -> None:
    seconds = latency_s + num_bytes / rate
    clock.now += seconds
    meter.timed("remote", num_bytes, seconds)


def test_something_is_assumed_before_the_first_read() -> None:
    link = Meter().link("remote")
    assert not link.is_measured
    assert link.bytes_per_s > 0
    assert Meter().decode_s("raw", 1 << 20) == 0.0 < Meter().decode_s("q4", 1 << 20)


@pytest.mark.parametrize("mbit", [10, 100, 1000, 10_000])
def test_bandwidth_and_latency_of_blocks_of_two_sizes(mbit: int) -> None:
    clock = Clock()
    meter = Meter(clock)
    for i in range(30):
        read(meter, clock, 1_500_000 if i % 2 else 400_000, mbit * MBIT, 0.004)
    link = meter.link("remote")
    assert link.bytes_per_s == pytest.approx(mbit * MBIT, rel=0.01)
    assert link.latency_s == pytest.approx(0.004, rel=0.01)
    assert link.seconds(mbit * MBIT, num_reads=8, in_flight=4) == pytest.approx(1.008, rel=0.01)


def test_small_reads_tell_the_latency_where_all_blocks_are_of_one_size() -> None:
    clock = Clock()
    meter = Meter(clock)
    for _ in range(10):
        read(meter, clock, 0, 1.0, 0.05)
        read(meter, clock, 300_000, 100 * MBIT, 0.05)
    link = meter.link("remote")
    assert link.latency_s == pytest.approx(0.05)
    assert link.bytes_per_s == pytest.approx(100 * MBIT, rel=0.01)


def test_reads_at_the_same_time_share_one_link() -> None:
    clock = Clock()
    meter = Meter(clock)
    for _ in range(8):  # four at a time: each sees a quarter of the link
        clock.now += 4 * 300_000 / (100 * MBIT)
        for _ in range(4):
            meter.timed("remote", 300_000, 4 * 300_000 / (100 * MBIT))
    took = meter.link("remote").seconds(8 * 300_000, num_reads=8, in_flight=4)
    assert took == pytest.approx(8 * 300_000 / (100 * MBIT), rel=0.15)


def test_a_link_that_changes_is_noticed_within_ten_blocks() -> None:
    clock = Clock()
    meter = Meter(clock)
    for rate, wanted in ((1000 * MBIT, 1000), (10 * MBIT, 10), (1000 * MBIT, 1000)):
        for _ in range(30 if wanted == 1000 else 10):
            read(meter, clock, 300_000, rate, 0.0)
    assert meter.link("remote").bytes_per_s > 500 * MBIT
    for _ in range(10):
        read(meter, clock, 300_000, 10 * MBIT, 0.0)
    assert meter.link("remote").bytes_per_s == pytest.approx(10 * MBIT, rel=0.3)


def test_decoding_is_timed_by_level() -> None:
    meter = Meter()
    for _ in range(5):
        meter.decoded("q4", 1_000_000, 0.01)
    assert meter.decode_s("q4", 2_000_000) == pytest.approx(0.02)
