"""Domains, the first routing level: which one a past question belongs to, and what it may have.

Owns the settings of a domain and finds the domain of what came without one. Knows vectors and
names; not how a domain is clustered, nor how much it has stored.
"""

from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import fields, replace
from typing import Any

import numpy as np

from centroidkv.errors import ConfigError
from centroidkv.plan_config import PlanConfig
from centroidkv.types import FloatArray

NEIGHBOURS = 5
BUDGET = "kv_budget_bytes"
# One projection and one depth of retrieval serve all domains of a plan.
_SHARED = ("pca_dim", "retrieval_depth", "seed")
_CHUNK = 1024

__all__ = ["DomainSettings", "checked_settings", "complete_domains", "domain_configs"]

DomainSettings = Mapping[str, Mapping[str, Any]]


def complete_domains(vectors: FloatArray, domains: Sequence[str]) -> list[str]:
    """Give each question without a domain that of its nearest labelled neighbours, by cosine vote.

    Args:
        vectors: Unit vectors of the questions, [n, dim].
        domains: Their domains, "" where unknown; with none known at all, that one is theirs.
    """
    known = np.flatnonzero([bool(d) for d in domains])
    unknown = np.flatnonzero([not d for d in domains])
    completed = list(domains)
    if not len(known) or not len(unknown):
        return completed
    for start in range(0, len(unknown), _CHUNK):
        rows = unknown[start : start + _CHUNK]
        likeness = vectors[rows] @ vectors[known].T
        nearest = np.argsort(-likeness, axis=1, kind="stable")[:, :NEIGHBOURS]
        for row, columns, alike in zip(rows, nearest, likeness, strict=True):
            votes: defaultdict[str, float] = defaultdict(float)
            for column in columns:
                votes[domains[known[column]]] += float(alike[column]) + 1.0  # from 0, as cosine < 0
            completed[row] = max(sorted(votes), key=votes.__getitem__)
    return completed


def domain_configs(
    config: PlanConfig,
    vectors: FloatArray,
    domains: Sequence[str],
    settings: DomainSettings | None,
) -> dict[str, PlanConfig]:
    """Return each domain's configuration, in the order of their names.

    A number of clusters given for the whole plan is shared out by how far the domains' questions
    are spread (their summed squared distance from their mean), at least one each: by their number
    alone, narrow domains get more than they can use. A domain that names its own number is left
    out of that.

    Raises:
        ConfigError: A setting is unknown or out of range, or of a domain without questions.
    """
    sizes = Counter(domains)
    given = checked_settings(settings, sizes, config)
    sharing = {d: n for d, n in sizes.items() if "num_clusters" not in given.get(d, {})}
    shares: Mapping[str, Any] = dict.fromkeys(sharing, config.num_clusters)
    if isinstance(config.num_clusters, int):
        own = [given[d]["num_clusters"] for d in sizes if d not in sharing]
        taken = sum(n for n in own if isinstance(n, int))
        shares = _shared(config.num_clusters - taken, _spreads(vectors, domains, sharing))
    configs: dict[str, PlanConfig] = {}
    for domain in sorted(sizes):
        changed = {"num_clusters": shares.get(domain), **given.get(domain, {})}
        changed["auto_budget_s"] = config.auto_budget_s * sizes[domain] / len(domains)
        changed.pop(BUDGET, None)
        configs[domain] = replace(config, **changed)
    return configs


def checked_settings(
    settings: DomainSettings | None, domains: Iterable[str], config: PlanConfig
) -> DomainSettings:
    """Return the settings of domains, known to be good for the domains there are.

    Raises:
        ConfigError: A setting is unknown or out of range, or of a domain without questions.
    """
    settings, known = settings or {}, sorted(set(domains))
    unknown = sorted(set(settings) - set(known))
    if unknown:
        named = ", ".join(d for d in known if d) or "none; give build(domains=...)"
        raise ConfigError(
            f"domain_settings names {', '.join(map(repr, unknown))}, which no question belongs to "
            f"(domains: {named})"
        )
    allowed = [f.name for f in fields(PlanConfig) if f.name not in (*_SHARED, "auto_budget_s")]
    for domain, own in settings.items():
        odd = sorted(set(own) - {*allowed, BUDGET})
        if odd:
            raise ConfigError(
                f"domain_settings of {domain!r}: unknown setting {', '.join(odd)}; known: "
                f"{', '.join([*allowed, BUDGET])}"
            )
        budget = own.get(BUDGET)
        if budget is not None and (type(budget) is not int or budget < 0):
            raise ConfigError(
                f"domain_settings of {domain!r}: {BUDGET} must be a number of bytes (0 or more) "
                f"or None, not {budget!r}"
            )
        replace(config, **{k: v for k, v in own.items() if k != BUDGET})
    return settings


def _spreads(
    vectors: FloatArray, domains: Sequence[str], chosen: Iterable[str]
) -> dict[str, float]:
    rows = {d: vectors[[i for i, own in enumerate(domains) if own == d]] for d in chosen}
    return {d: float(((v - v.mean(0)) ** 2).sum()) for d, v in rows.items()}


def _shared(total: int, sizes: Mapping[str, float]) -> dict[str, int]:
    """Share a number out in proportion to sizes, by largest remainder, at least one each."""
    whole = sum(sizes.values()) or 1.0
    exact = {d: max(total, 0) * n / whole for d, n in sizes.items()}
    shares = {d: max(1, int(x)) for d, x in exact.items()}
    by_need = sorted(sizes, key=lambda d: (shares[d] - exact[d], d))
    for domain in by_need[: max(total - sum(shares.values()), 0)]:
        shares[domain] += 1
    for _ in range(sum(shares.values()) - total):
        # The least one each took more than there is; the largest gives it.
        largest = max(sorted(shares), key=shares.__getitem__)
        shares[largest] = max(1, shares[largest] - 1)
    return shares
