"""Pinning clusters: what their prefixes hold is never evicted from disk, nor from memory if asked.

A pin belongs to a plan version. Clusters that a refresh takes over keep it; a refit makes other
clusters, and its versions begin without pins.
"""

import logging
import sqlite3
from dataclasses import dataclass

from centroidkv.errors import ConfigError
from centroidkv.routing.plan import Plan
from centroidkv.routing.router import Router
from centroidkv.store import Store

_log = logging.getLogger("centroidkv")

# What pinned clusters may hold of a budget: the rest is for what they and others need now.
MOST = 0.75

__all__ = ["PinnedCluster", "Pins", "keep_in_memory", "pinned_clusters"]


@dataclass(frozen=True, slots=True)
class PinnedCluster:
    """A pinned cluster, and what its prefixes hold on disk; shared blocks count for each."""

    plan: str
    cluster: int
    in_memory: bool
    num_blocks: int
    num_bytes: int


class Pins:
    """The pins of one store; clusters are those of the plan that a router has in force."""

    def __init__(self, store: Store, router: Router) -> None:
        self._store = store
        self._router = router

    def add(self, cluster: int, *, in_memory: bool = False) -> None:
        """Keep a cluster's KV on disk, and with `in_memory` in memory too.

        Raises:
            ConfigError: There is no such cluster, or the budget is too small for all that is
                pinned.
            StoreError: The store is read-only.
        """
        store = self._store
        store.require_writable("pin a cluster")
        plan = self._plan_with(cluster)
        manifest = store.blocks.disk.manifest
        store.writer.flush()  # its prefix may still be on its way
        keys = {(p, c): kept for p, c, kept in manifest.pins()} | {(plan.id, cluster): in_memory}
        _require_room("disk_budget_bytes", store.blocks.disk.budget_bytes, _bytes(store, [*keys]))
        kept = [key for key, is_kept in keys.items() if is_kept]
        _require_room(
            "memory_budget_bytes", store.blocks.memory.budget_bytes, _bytes_in_memory(store, kept)
        )
        manifest.pin(plan.id, cluster, in_memory=in_memory)
        keep_in_memory(store)

    def remove(self, cluster: int) -> None:
        """Let a cluster's KV leave again when its turn comes.

        Raises:
            ConfigError: There is no such cluster.
            StoreError: The store is read-only.
        """
        self._store.require_writable("unpin a cluster")
        self._store.blocks.disk.manifest.unpin(self._plan_with(cluster).id, cluster)
        keep_in_memory(self._store)

    def all(self) -> list[PinnedCluster]:
        """Return what is pinned, of all plan versions."""
        return pinned_clusters(self._store)

    def _plan_with(self, cluster: int) -> Plan:
        plan = self._router.plan
        if plan is None or cluster not in {c.id for c in plan.clusters}:
            last = len(plan.clusters) - 1 if plan is not None else -1
            known = f"they are 0 to {last}" if last >= 0 else "there are none"
            raise ConfigError(f"the plan in force has no cluster {cluster!r}; {known}")
        return plan


def keep_in_memory(store: Store) -> None:
    """Bring clusters that are pinned in memory there, and let them stay."""
    manifest = store.blocks.disk.manifest
    try:
        kept = [(plan, cluster) for plan, cluster, is_kept in manifest.pins() if is_kept]
        store.blocks.memory.keep(block for key in kept for block in _blocks(store, *key))
        for row in [row for key in kept for row in manifest.prefixes(*key)]:
            store.blocks.prefetch(row.block)
    except sqlite3.Error as error:
        _log.warning("pinned clusters were not brought into memory: %s", error)


def pinned_clusters(store: Store) -> list[PinnedCluster]:
    """Return what is pinned, of all plan versions."""
    found = []
    for plan, cluster, kept in store.blocks.disk.manifest.pins():
        blocks = _blocks(store, plan, cluster)
        found.append(PinnedCluster(plan, cluster, kept, len(blocks), sum(blocks.values())))
    return found


def _blocks(store: Store, plan: str, cluster: int) -> dict[str, int]:
    """Return the blocks of a cluster's prefixes, of all models and heads, and their bytes."""
    manifest = store.blocks.disk.manifest
    namespaces = {row.namespace for row in manifest.prefixes(plan, cluster)}
    return {b.id: b.num_bytes for n in namespaces for b in manifest.held(plan, n, [cluster])}


def _bytes(store: Store, keys: list[tuple[str, int]]) -> int:
    held = {block: size for key in keys for block, size in _blocks(store, *key).items()}
    return sum(held.values())


def _bytes_in_memory(store: Store, keys: list[tuple[str, int]]) -> int:
    """Return what clusters take in memory, where coded KV is decoded."""
    loaded = map(store.blocks.get, {block for key in keys for block in _blocks(store, *key)})
    return sum(block.num_bytes for block in loaded if block is not None)


def _require_room(setting: str, budget_bytes: int, num_bytes: int) -> None:
    if num_bytes > MOST * budget_bytes:
        raise ConfigError(
            f"the pinned clusters would hold {num_bytes:,} bytes of {budget_bytes:,}, and at most "
            f"{MOST:.0%} may be pinned; unpin some, or raise {setting}"
        )
