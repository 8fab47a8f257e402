"""How an open store is: what is left alone, what waits. Read off its parts; nobody is asked."""

from dataclasses import dataclass
from typing import Literal

from centroidkv.centroids import Centroids
from centroidkv.kv.tiers import TieredBlocks
from centroidkv.kv.write_behind import WriteBehind
from centroidkv.routing.router import Router
from centroidkv.serving.queueing import RequestQueue

__all__ = ["Health", "StoreParts", "health_of"]


@dataclass(frozen=True, slots=True)
class StoreParts:
    """The parts of an open store whose state is looked at."""

    blocks: TieredBlocks
    writer: WriteBehind
    requests: RequestQueue
    centroids: Centroids


@dataclass(frozen=True, slots=True)
class Health:
    """The state of this process.

    `routes_by` is what found the nearest centroid last: `chroma`, or `memory` where Chroma is
    down, in use by another process or not used; None without a plan, or where no engine is open.
    `index_failures` counts how often it had to be memory, or an embedder failed. `remote_breaker`
    is None without a remote. `queued_writes` jobs hold `queued_bytes` of KV.
    """

    routes_by: Literal["chroma", "memory"] | None
    index_failures: int
    remote_breaker: Literal["closed", "open", "half-open"] | None
    queued_writes: int
    queued_bytes: int
    running: int
    waiting: int
    refused: int


def health_of(parts: StoreParts, router: Router | None = None) -> Health:
    """Describe the state of an open store, of an engine's router too if there is one."""
    remote = parts.blocks.remote
    has_plan = router is not None and router.plan is not None
    return Health(
        routes_by=router.routes_by if router is not None and has_plan else None,
        index_failures=router.num_index_failures if router is not None else 0,
        remote_breaker=remote.calls.breaker.state if remote is not None else None,
        queued_writes=parts.writer.num_waiting,
        queued_bytes=parts.writer.waiting_bytes,
        running=parts.requests.num_running,
        waiting=parts.requests.num_waiting,
        refused=parts.requests.num_refused,
    )
