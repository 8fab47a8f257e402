"""What is known of the plan versions of a store: state, contents, figures. Needs no model."""

from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Literal

from centroidkv.errors import CacheError, ConfigError
from centroidkv.routing.pointer import Pointer
from centroidkv.store import Store
from centroidkv.versions.figures import Figures, read_figures

__all__ = ["PlanVersion", "list_versions", "plan_namespace_of"]


@dataclass(frozen=True, slots=True)
class PlanVersion:
    """One plan version.

    `share` is the part of the questions that it serves; `source` what made it; `figures` what its
    requests cost, one row per model.
    """

    version: int
    plan_id: str
    state: Literal["in force", "trial", "previous", "kept", "damaged"]
    share: float
    source: str
    made_at: str
    num_clusters: int
    num_filled_clusters: int
    num_pinned_passages: int
    figures: tuple[Figures, ...]


def list_versions(store: Store, namespace: str) -> list[PlanVersion]:
    """Return the versions of a plan namespace, oldest first."""
    try:
        pointer = store.plans.pointer(namespace)
    except CacheError:
        pointer = None
    if pointer is None:
        plan, _ = store.plans.in_force(namespace)
        pointer = Pointer(plan.version if plan is not None else 0)
    known = read_figures(store.path)
    found = []
    for number in store.plans.versions(namespace):
        path = store.plans.path(namespace, number)
        own = tuple(f for f in known if f.plan == path.stem)
        made = datetime.fromtimestamp(path.stat().st_mtime, UTC).isoformat(timespec="seconds")
        try:
            plan = store.plans.load(namespace, number)
        except CacheError:
            found.append(PlanVersion(number, path.stem, "damaged", 0.0, "", made, 0, 0, 0, own))
            continue
        filled = {r.cluster for r in store.blocks.disk.manifest.prefixes(plan.id)}
        found.append(
            PlanVersion(
                version=number,
                plan_id=plan.id,
                state=_state(number, pointer),
                share=_share(number, pointer),
                source=plan.source or ("online" if plan.is_online else "build"),
                made_at=made,
                num_clusters=len(plan.clusters),
                num_filled_clusters=len(filled),
                num_pinned_passages=len(plan.passages),
                figures=own,
            )
        )
    return found


def _state(
    version: int, pointer: Pointer
) -> Literal["in force", "trial", "previous", "kept", "damaged"]:
    if version == pointer.in_force:
        return "in force"
    if version == pointer.trial:
        return "trial"
    return "previous" if version == pointer.previous else "kept"


def _share(version: int, pointer: Pointer) -> float:
    if version == pointer.in_force:
        return 1.0 - pointer.share
    return pointer.share if version == pointer.trial else 0.0


def plan_namespace_of(store: Store) -> str:
    """Return the one plan namespace that a store has plans of, without its embedder.

    Raises:
        ConfigError: It has no readable plan, or plans of several embedders or tenants.
    """
    found = set()
    for path in store.plans.files():
        try:
            found.add(store.plans.read(path).namespace)
        except CacheError:
            continue
    if not found:
        raise ConfigError(f"{store.path} holds no readable plan; build one first")
    if len(found) > 1:
        raise ConfigError(
            f"{store.path} holds plans of {len(found)} embedders or tenants; use engine.versions "
            "of an engine opened with the one that is meant"
        )
    return found.pop()
