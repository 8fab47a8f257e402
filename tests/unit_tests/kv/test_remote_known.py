"""What is known of a remote without asking: for how long, and how much of it."""

import pytest

from centroidkv.kv import remote_known
from centroidkv.kv.remote_known import ABSENT_S, PRESENT_S, UNUSABLE_S, KnownBlocks


class Clock:
    """A clock that is set by hand."""

    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock() -> Clock:
    return Clock()


def test_each_thing_is_known_for_its_time(clock: Clock) -> None:
    known = KnownBlocks(clock)
    known.present("here", {"raw": 5, "int8": 3})
    known.unusable("here", "int8")
    known.absent("gone")
    assert known.sizes("here") == {"raw": 5}
    assert known.is_absent("gone")
    assert not known.is_absent("here") and not known.sizes("gone")
    clock.now += ABSENT_S + 1
    assert not known.is_absent("gone")
    assert known.sizes("here") == {"raw": 5}
    clock.now += PRESENT_S
    assert known.sizes("here") == {}


def test_the_last_word_on_a_block_holds(clock: Clock) -> None:
    known = KnownBlocks(clock)
    known.absent("block")
    known.unusable("block", "raw")
    known.written("block", {"raw": 5})
    assert known.sizes("block") == {"raw": 5} and not known.is_absent("block")
    known.absent("block")
    assert known.is_absent("block") and not known.sizes("block")


def test_what_has_ended_is_let_go_when_more_is_noted(clock: Clock) -> None:
    known = KnownBlocks(clock)
    for number in range(50):
        known.present(f"here {number}", {"raw": 5})
        known.absent(f"gone {number}")
        known.unusable(f"odd {number}", "raw")
    assert len(known) == 150
    known.present("here 0", {"raw": 5})  # seen again: it stays with the new ones
    clock.now += max(PRESENT_S, ABSENT_S, UNUSABLE_S) / 2
    known.present("here 1", {"raw": 5})
    clock.now += max(PRESENT_S, ABSENT_S, UNUSABLE_S) / 2 + 1
    known.present("new", {"raw": 5})
    known.absent("new too")
    known.unusable("odd too", "raw")
    assert len(known) == 4
    assert known.sizes("here 1") == {"raw": 5} and not known.sizes("here 0")


def test_no_more_than_a_number_is_known(clock: Clock, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(remote_known, "MOST", 3)
    known = KnownBlocks(clock)
    for number in range(9):
        known.present(f"{number}", {"raw": number + 1})
    assert len(known) == 3
    assert [n for n in range(9) if known.sizes(f"{n}")] == [6, 7, 8]
