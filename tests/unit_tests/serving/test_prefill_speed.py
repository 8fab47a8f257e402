"""Computing is predicted from what was computed."""

import numpy as np
import pytest

from centroidkv.serving.prefill_speed import PrefillSpeed


def cost(num_tokens: int, behind: int) -> float:
    return 0.15 + 0.0018 * num_tokens + 2e-7 * num_tokens * (behind + num_tokens / 2)


def test_nothing_is_known_before_the_first_prefill() -> None:
    speed = PrefillSpeed()
    assert speed.seconds(256) is None
    speed.timed(0, 1.0)
    assert speed.seconds(256) is None


def test_one_prefill_gives_the_order_of_magnitude() -> None:
    speed = PrefillSpeed()
    speed.timed(1200, cost(1200, 0))
    for num_tokens, behind in ((256, 0), (256, 1024), (2000, 0)):
        assert speed.seconds(num_tokens, behind=behind) == pytest.approx(
            cost(num_tokens, behind), rel=0.5
        )


def test_a_few_lengths_give_the_rest_through_noise_and_a_pause() -> None:
    speed, noise = PrefillSpeed(), np.random.default_rng(0)
    sizes = [(n, b) for n in (40, 256, 900, 1800) for b in (0, 500, 1500)] * 3
    for i, (num_tokens, behind) in enumerate(sizes):
        pause = 2.0 if i == 1 else 0.0
        seconds = cost(num_tokens, behind) * (1 + 0.03 * noise.standard_normal())
        speed.timed(num_tokens, seconds + pause, behind=behind)
    for num_tokens, behind in ((64, 0), (256, 1000), (512, 512), (2000, 0)):
        assert speed.seconds(num_tokens, behind=behind) == pytest.approx(
            cost(num_tokens, behind), rel=0.15
        )


def test_a_machine_that_slows_down_is_noticed() -> None:
    speed = PrefillSpeed()
    for slow in [1.0] * 20 + [3.0] * 40:
        speed.timed(256, slow * cost(256, 512), behind=512)
    assert speed.seconds(256, behind=512) == pytest.approx(3 * cost(256, 512), rel=0.1)
