"""Progress of long work: a bar on a terminal, or nothing."""

from typing import Any

from centroidkv.protocols import Progress

__all__ = ["no_progress", "progress_bar"]


def no_progress(stage: str, done: int, total: int) -> None:
    """Show nothing."""


def progress_bar() -> Progress:
    """Return a progress function that draws one bar per stage on standard error."""
    from tqdm import tqdm

    bars: dict[str, Any] = {}

    def show(stage: str, done: int, total: int) -> None:
        if stage not in bars:
            bars[stage] = tqdm(total=total, desc=stage)
        bar = bars[stage]
        bar.update(done - bar.n)
        if done == total:
            bar.close()

    return show
