"""What a store's statistics say of its remote tier."""

from dataclasses import dataclass

from centroidkv.store import Store

__all__ = ["RemoteStats", "remote_stats"]


@dataclass(frozen=True, slots=True)
class RemoteStats:
    """The remote tier as this process sees it; `used_bytes` is None before it was listed.

    `breaker` is `closed` while the remote is asked, `open` while it is left alone after failures,
    and `half-open` when the next call decides. `faults` counts what went wrong, by kind.
    """

    url: str
    breaker: str
    used_bytes: int | None
    budget_bytes: int | None
    faults: dict[str, int]


def remote_stats(store: Store) -> RemoteStats | None:
    """Describe the remote tier, None without one; the remote is not asked."""
    remote = store.blocks.remote
    if remote is None:
        return None
    return RemoteStats(
        url=remote.settings.shown_url,
        breaker=remote.calls.breaker.state,
        used_bytes=remote.budget.used_bytes if remote.budget is not None else None,
        budget_bytes=remote.settings.budget_bytes,
        faults=dict(remote.calls.faults),
    )
