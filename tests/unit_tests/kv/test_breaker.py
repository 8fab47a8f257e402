"""What keeps failing is left alone for a while, and then tried once."""

from centroidkv.breaker import Breaker


class Clock:
    now = 0.0

    def __call__(self) -> float:
        return self.now


def test_a_breaker_opens_after_failures_in_a_row_and_closes_after_one_success() -> None:
    clock = Clock()
    breaker = Breaker(most_failures=3, pause_s=10, longest_s=30, clock=clock)
    for _ in range(2):
        breaker.failed()
    breaker.succeeded()
    for _ in range(3):
        assert breaker.allows() and breaker.state == "closed"
        breaker.failed()
    assert breaker.state == "open" and not breaker.allows()
    for pause_s in (10, 20, 30, 30):
        clock.now += pause_s - 1
        assert not breaker.allows()
        clock.now += 1
        assert breaker.state == "half-open"
        assert breaker.allows() and not breaker.allows(), "one trial at a time"
        breaker.failed()
        assert breaker.state == "open"
    clock.now += 30
    assert breaker.allows()
    breaker.succeeded()
    assert breaker.state == "closed" and breaker.allows() and breaker.allows()


def test_a_trial_of_which_nothing_is_heard_is_followed_by_another() -> None:
    clock = Clock()
    breaker = Breaker(most_failures=1, pause_s=10, clock=clock)
    breaker.failed()
    clock.now += 10
    assert breaker.allows(), "the trial, which is interrupted"
    assert not breaker.allows()
    clock.now += 10
    assert breaker.allows()
