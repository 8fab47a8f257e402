"""One tenant's part of what a whole store's figures and checks say.

Budgets, bytes and faults of the store are everybody's; what was asked and stored is a tenant's own.
Counters of requests stay with the engine that opened the store.
"""

import re
from collections.abc import Collection, Mapping
from dataclasses import replace

from centroidkv.kv.holdings import Holdings
from centroidkv.maintenance import CheckReport, StoreStats
from centroidkv.routing.plan import Plan
from centroidkv.store import Store

_OF_REQUESTS = ("requests", "outcome_", "reason_")
_BLOCK = re.compile(r"\b[0-9a-f]{64}\b")
_PLAN = re.compile(r"\b([0-9a-f]{16})(?:-\d{6}\.plan|\.pointer)")

__all__ = ["own_check", "own_stats"]


def own_stats(
    found: StoreStats, store: Store, plan: Plan | None, namespaces: tuple[str, str]
) -> StoreStats:
    """Return a store's statistics with those of one tenant in place of everybody's.

    Args:
        found: Of the whole store.
        store: As the tenant sees it.
        plan: The one in force for the tenant.
        namespaces: The tenant's KV namespace and plan namespace, of its engine.
    """
    manifest = store.blocks.disk.manifest
    kv, plans = namespaces
    own = {*Holdings.of_tenant(store.blocks, store.config.tenant_key).namespaces(), kv}
    filled = {r.cluster for r in manifest.prefixes(plan.id)} if plan else set()
    return replace(
        found,
        num_blocks=sum(manifest.num_blocks(n) for n in own),
        num_plans=len(store.plans.files(plans)),
        plan_id=plan.id if plan else None,
        num_clusters=len(plan.clusters) if plan else 0,
        num_filled_clusters=len(filled),
        num_pinned_passages=len(plan.passages) if plan else 0,
        counters=_own_counters(found.counters, is_owner=store.is_owner),
        figures=tuple(f for f in found.figures if f.model in own),
        pinned_clusters=tuple(p for p in found.pinned_clusters if p.plan.startswith(plans[-16:])),
    )


def _own_counters(counters: Mapping[str, int], *, is_owner: bool) -> dict[str, int]:
    return {n: v for n, v in counters.items() if is_owner or not n.startswith(_OF_REQUESTS)}


def own_check(found: CheckReport, store: Store, plan_namespace: str) -> CheckReport:
    """Return what a check says of one tenant's blocks and plans, and of what all share."""
    if store.is_owner:
        return found
    manifest = store.blocks.disk.manifest
    names = Holdings.of_tenant(store.blocks, store.config.tenant_key).namespaces()
    blocks = {row.id for n in names for row in manifest.rows("namespace = ?", n)}
    own_plans = {plan_namespace[-16:]}
    return CheckReport(
        len(blocks),
        len(store.plans.files(plan_namespace)),
        [p for p in found.problems if _is_own(p, blocks, own_plans)],
        [r for r in found.repaired if _is_own(r, blocks, own_plans)],
    )


def _is_own(line: str, blocks: Collection[str], plans: Collection[str]) -> bool:
    return all(b in blocks for b in _BLOCK.findall(line)) and all(
        p in plans for p in _PLAN.findall(line)
    )
