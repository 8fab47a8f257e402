"""What `make profile` times is there under the names it knows."""

import time

import stages

from centroidkv import Engine


def test_every_stage_is_a_function_of_the_engine(engine: Engine) -> None:
    points = stages.points(engine)
    for owner, attribute, name in points:
        assert callable(getattr(owner, attribute))
        assert name in stages.ORDER
    own = {"answer", "retrieve (the user's own)"}
    assert {name for *_, name in points} | own == set(stages.ORDER)


def test_a_stage_that_runs_twice_is_summed_within_its_request() -> None:
    class Part:
        def work(self) -> int:
            time.sleep(0.001)
            return 7

    found = stages.Stages()
    found.watch(Part, "work", "route")
    assert [Part().work(), Part().work()] == [7, 7]
    found.end_request()
    Part().work()
    found.end_request()
    assert found.requests[0]["route"][0] >= 0.002
    assert [r["route"][1] for r in found.requests] == [2, 1]
    assert found.table()["route"]["calls"] == 1.5
