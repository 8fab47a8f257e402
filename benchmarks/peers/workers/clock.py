"""How every worker takes its times: from the call to the first token, and to the last.

Standard library only.
"""

import time
from collections.abc import Iterable
from typing import Any

__all__ = ["timed"]


def timed(pieces: Iterable[Any], started: float) -> tuple[list[Any], dict[str, float]]:
    """Take what a peer streams; return it with `ttft_s` and `total_s` since `started`.

    Empty pieces do not count as a first token.
    """
    taken: list[Any] = []
    first = 0.0
    for piece in pieces:
        first = first or (time.perf_counter() - started if piece != "" else 0.0)
        taken.append(piece)
    total = time.perf_counter() - started
    return taken, {"ttft_s": first or total, "total_s": total}
