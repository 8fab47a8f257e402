"""Fitting a plan to questions whose retrievals are known (source paper, section 3.1).

reduce -> cluster, each domain apart -> per cluster centroid, representative, pins, radius.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace

import numpy as np

from centroidkv.errors import ConfigError
from centroidkv.plan_config import PlanConfig
from centroidkv.routing.domains import DomainSettings, complete_domains, domain_configs
from centroidkv.routing.grouping import Group, grouped, shaped
from centroidkv.routing.history import Seen
from centroidkv.routing.pin_lists import Ballot, pin_lists
from centroidkv.routing.pins import vote
from centroidkv.routing.plan import Plan
from centroidkv.routing.projection import fit_projection
from centroidkv.types import Cluster, FloatArray, Passage

__all__ = ["fit_plan"]


def fit_plan(
    seen: Sequence[Seen],
    passages: Mapping[str, Passage],
    config: PlanConfig,
    *,
    namespace: str,
    count_tokens: Callable[[str], int],
    domains: Mapping[str, str] | None = None,
    domain_settings: DomainSettings | None = None,
) -> Plan:
    """Fit a plan to questions whose retrievals are known; its version is given when it is kept.

    Raises:
        ConfigError: The embedding of a question is not finite, or a domain's settings are wrong.
    """
    vectors = _finite(seen)
    kinds = complete_domains(vectors, [(domains or {}).get(s.question) or s.domain for s in seen])
    configs = domain_configs(config, vectors, kinds, domain_settings)
    dim, configs = shaped(vectors, config, configs)
    projection = fit_projection(vectors, dim=dim, seed=config.seed)
    groups = grouped(vectors, projection.transform(vectors), kinds, configs)
    tokens = {p: count_tokens(passages[p].text) for p in {p for s in seen for p in s.passages}}
    clusters, ballots = [], []
    for number, group in enumerate(groups):
        found, ballot = _cluster(number, group, seen, vectors, configs[group.domain])
        clusters.append(found)
        ballots.append(ballot)
    lists = pin_lists(
        ballots,
        projection.transform(np.stack([g.centroid for g in groups])),
        tokens,
        store_tokens=config.store_tokens,
        seed=config.seed,
    )
    clusters = [replace(c, pins=pins) for c, pins in zip(clusters, lists, strict=True)]
    pinned = {p: passages[p] for c in clusters for p in c.pins}
    settings = {d: dict(own) for d, own in (domain_settings or {}).items()}
    return Plan(namespace, 0, projection, tuple(clusters), pinned, domain_settings=settings)


def _cluster(
    number: int, group: Group, seen: Sequence[Seen], vectors: FloatArray, config: PlanConfig
) -> tuple[Cluster, Ballot]:
    """Return a group as a cluster without pins, and its votes for them."""
    far = np.linalg.norm(vectors[group.members] - group.centroid, axis=1)
    members = [seen[i] for i in group.members[far.argsort(kind="stable")]]
    found = Cluster(
        id=number,
        centroid=group.centroid,
        representative=members[0].question,
        members=tuple(m.question for m in members[:2]),
        pins=(),
        radius=group.radius,
        num_members=len(members),
        domain=group.domain,
        guests=group.guests,
    )
    voters = [seen[i] for i in group.voters]
    votes = vote([v.passages for v in voters], [v.weight for v in voters])
    return found, Ballot(votes, config.max_pins, config.max_pin_tokens)


def _finite(seen: Sequence[Seen]) -> FloatArray:
    vectors = np.stack([s.embedding for s in seen])
    wrong = np.flatnonzero(~np.isfinite(vectors).all(1))
    if len(wrong):
        raise ConfigError(
            f"the embeddings of {len(wrong)} questions are NaN or infinite, first of "
            f"{seen[wrong[0]].question!r}: check the embedder, or leave these questions out"
        )
    return vectors
