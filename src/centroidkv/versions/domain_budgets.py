"""How many bytes of KV the clusters of a domain may have on disk, and how many they have.

Counted are the distinct blocks of the domain's filled prefixes, of one model, at the size of
their files. Knows no chain and no request; who warms or learns asks here before it stores.
"""

from collections.abc import Sequence

from centroidkv.kv.blocks import BLOCK_TOKENS, chain
from centroidkv.kv.manifest import HeldBlock, Manifest
from centroidkv.routing.plan import Plan
from centroidkv.types import Cluster

# What a block's file has besides keys and values; about 1 KiB, never more than this.
HEADER_BYTES = 4096

__all__ = ["DomainBudgets", "by_worth", "full_budget"]


class DomainBudgets:
    """The byte budgets of a plan's domains in one KV namespace."""

    def __init__(self, manifest: Manifest, namespace: str) -> None:
        self._manifest = manifest
        self._namespace = namespace

    def used_bytes(self, plan: Plan, domain: str) -> int:
        """Return the bytes of the files that a domain's filled clusters point at, each once."""
        return sum(block.num_bytes for block in self._held(plan, domain))

    def has_room(
        self, plan: Plan, cluster: Cluster, token_ids: Sequence[int], *, bytes_per_token: int
    ) -> bool:
        """Tell whether a cluster's prefix may be stored; always, where its domain has no budget.

        What the domain's other clusters have of it costs nothing. A block that is not full is
        counted as a full one, since a later request may lengthen it.
        """
        budget = plan.kv_budget_bytes(cluster.domain)
        if budget is None:
            return True
        full = BLOCK_TOKENS * bytes_per_token + HEADER_BYTES
        held = {block.id: block for block in self._held(plan, cluster.domain)}
        links = chain(self._namespace, tuple(token_ids))
        new = sum(self._size(link.id, full) for link in links if link.id not in held)
        used = sum(_reserved(block, full) for block in held.values())
        return new == 0 or used + new <= budget

    def _held(self, plan: Plan, domain: str) -> list[HeldBlock]:
        own = [c.id for c in plan.clusters if c.domain == domain]
        return self._manifest.held(plan.id, self._namespace, own)

    def _size(self, block: str, full: int) -> int:
        """Return what a block will count: of one on disk, what it has there."""
        row = self._manifest.get(block)
        if row is None:
            return full
        return _reserved(HeldBlock(row.id, row.num_bytes, len(row.token_ids)), full)


def _reserved(block: HeldBlock, full: int) -> int:
    return block.num_bytes if block.num_tokens == BLOCK_TOKENS else max(full, block.num_bytes)


def by_worth(plan: Plan) -> Sequence[Cluster]:
    """Return the clusters in the order to fill them: under a budget, those asked most first."""
    if all(plan.kv_budget_bytes(c.domain) is None for c in plan.clusters):
        return plan.clusters
    return sorted(plan.clusters, key=lambda c: (-c.num_members, c.id))


def full_budget(plan: Plan, cluster: Cluster) -> str:
    """Say why a cluster is left unfilled."""
    return (
        f"domain {cluster.domain!r} has no room under its kv_budget_bytes of "
        f"{plan.kv_budget_bytes(cluster.domain):,}"
    )
