"""What of a store's state is shown as metrics, read off its parts. Knows no metrics library."""

import re
import sqlite3
from collections.abc import Iterator, Mapping
from dataclasses import dataclass

from centroidkv.observers.health import StoreParts, health_of

_NAME = re.compile(r"[a-z_]{1,60}")

__all__ = ["Reading", "readings"]

# Counted here, or shown under a name of their own.
_ELSEWHERE = ("requests", "outcome_", "reason_", "disk_bytes", "evicted_blocks", "damaged_blocks")


@dataclass(frozen=True, slots=True)
class Reading:
    """The values of one metric, by the value of its `label`; by "" without one."""

    name: str
    meaning: str
    label: str
    values: Mapping[str, float]
    is_counter: bool = False


def readings(parts: StoreParts) -> Iterator[Reading]:
    """Read a store's state. What its manifest cannot say now is left out."""
    yield from _of_process(parts)
    yield from _of_remote(parts)
    try:
        counters = parts.blocks.disk.manifest.counters()
        num_blocks = parts.blocks.disk.manifest.num_blocks()
    except sqlite3.Error:
        return
    yield from _of_tiers(parts, counters, num_blocks)
    yield from _of_store(counters)


def _of_process(parts: StoreParts) -> Iterator[Reading]:
    health, writer, memory = health_of(parts), parts.writer, parts.blocks.memory
    yield Reading("requests_running", "Requests being computed.", "", {"": health.running})
    yield Reading("requests_waiting", "Requests waiting for a place.", "", {"": health.waiting})
    yield _counter("refused_requests", "Requests refused, as the queue was full.", health.refused)
    yield Reading("write_queue_jobs", "Jobs behind answers.", "", {"": health.queued_writes})
    yield Reading("write_queue_bytes", "KV that they hold.", "", {"": health.queued_bytes})
    yield _counter("failed_writes", "Jobs behind answers that failed.", writer.num_failed)
    yield _counter("dropped_writes", "Jobs that found no room in the queue.", writer.num_dropped)
    yield _counter("memory_evictions", "Blocks that left memory for room.", memory.num_evicted)


def _of_remote(parts: StoreParts) -> Iterator[Reading]:
    """Describe what lies elsewhere; without it, its metrics are there and empty."""
    remote = parts.blocks.remote
    faults: dict[str, float] = {}
    if remote is not None:
        faults = {str(kind): count for kind, count in dict(remote.calls.faults).items()}
    states = _states(remote.calls.breaker.state if remote is not None else None)
    yield Reading("remote_breaker", "1 for the state of the remote's breaker.", "state", states)
    states = _states(parts.centroids.server_state)
    yield Reading(
        "chroma_server", "1 for the state of the Chroma server's breaker.", "state", states
    )
    yield Reading(
        "remote_faults", "What went wrong with the remote.", "kind", faults, is_counter=True
    )


def _states(now: str | None) -> dict[str, float]:
    """Return 1 for a breaker's state and 0 for the others; {} without a breaker."""
    if now is None:
        return {}
    return {state: state == now for state in ("closed", "open", "half-open")}


def _of_tiers(parts: StoreParts, counters: Mapping[str, int], num_blocks: int) -> Iterator[Reading]:
    blocks = parts.blocks
    memory, disk, remote = blocks.memory, blocks.disk, blocks.remote
    held: dict[str, float] = {"memory": memory.num_bytes, "disk": counters.get("disk_bytes", 0)}
    budgets: dict[str, float] = {"memory": memory.budget_bytes, "disk": disk.budget_bytes}
    budget = remote.budget if remote is not None else None
    if remote is not None and budget is not None and budget.used_bytes is not None:
        held["remote"] = budget.used_bytes
        budgets["remote"] = remote.settings.budget_bytes or 0
    yield Reading("tier_bytes", "Bytes of KV in a tier.", "tier", held)
    yield Reading("tier_budget_bytes", "Most bytes that a tier may hold.", "tier", budgets)
    counts: dict[str, float] = {"memory": len(memory), "disk": num_blocks}
    yield Reading("tier_blocks", "Blocks of KV in a tier.", "tier", counts)


def _of_store(counters: Mapping[str, int]) -> Iterator[Reading]:
    evicted, damaged = counters.get("evicted_blocks", 0), counters.get("damaged_blocks", 0)
    yield _counter("disk_evictions", "Blocks that left the disk for its budget.", evicted)
    yield _counter("damaged_blocks", "Block files that were set aside.", damaged)
    # Counters have names of ours; whatever else stands in a manifest is not shown.
    others = {
        name: float(count)
        for name, count in counters.items()
        if _NAME.fullmatch(name) and not name.startswith(_ELSEWHERE)
    }
    yield Reading("store_events", "The store's other counters.", "event", others, is_counter=True)


def _counter(name: str, meaning: str, value: float) -> Reading:
    return Reading(name, meaning, "", {"": value}, is_counter=True)
