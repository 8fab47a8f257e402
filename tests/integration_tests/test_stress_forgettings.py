"""The quick form of `tests/stress/forgettings.py`: a kill at each place that is forgotten from."""

from stress_quick import quick


def test_no_kill_leaves_what_was_to_be_forgotten() -> None:
    assert quick("forgettings") == {"kills": 12, "violations": []}
