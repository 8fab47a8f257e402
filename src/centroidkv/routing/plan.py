"""The plan: one fitted embedding -> reduction -> clustering, in one checksummed file.

The plan is the truth about clusters; the centroid index is made from it. The file is eight bytes
of magic, the SHA-256 of the rest, and an npz archive without pickle.
"""

import hashlib
import io
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np

from centroidkv.bounds import read_arrays
from centroidkv.errors import CacheCorrupt, CacheError, CacheMismatch
from centroidkv.files import forbidden
from centroidkv.routing.plan_texts import read_texts, require_fitting
from centroidkv.routing.pointer import Pointer, read_pointer, write_pointer
from centroidkv.routing.projection import Projection
from centroidkv.types import Cluster, FloatArray, Passage
from centroidkv.vault import IN_THE_CLEAR, Vault

MAGIC = b"CKVPLAN1"
MAX_PLAN_BYTES = 1 << 32

__all__ = ["Plan", "PlanFolder", "load_plan", "save_plan"]


@dataclass(frozen=True, slots=True)
class Plan:
    """Clusters of one plan namespace, one version.

    `is_online` marks one grown from misses. `source` says what made it, `settings` how, so that
    it can be fitted again.
    """

    namespace: str
    version: int
    projection: Projection
    clusters: tuple[Cluster, ...]
    passages: Mapping[str, Passage] = field(default_factory=dict)
    is_online: bool = False
    domain_settings: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    source: str = ""
    settings: Mapping[str, Any] = field(default_factory=dict)

    @property
    def id(self) -> str:
        return f"{self.ids_begin_with(self.namespace)}{self.version:06d}"

    @staticmethod
    def ids_begin_with(namespace: str) -> str:
        """Return what the ids of all plans of a namespace begin with."""
        return f"{namespace[-16:]}-"

    def cluster(self, cluster_id: int) -> Cluster | None:
        """Return a cluster by id; ids are positions."""
        known = 0 <= cluster_id < len(self.clusters)
        return self.clusters[cluster_id] if known else None

    def pinned(self, cluster: Cluster) -> list[Passage]:
        """Return a cluster's pinned passages in canonical order."""
        return [self.passages[p] for p in cluster.pins if p in self.passages]

    def kv_budget_bytes(self, domain: str) -> int | None:
        """Return how many bytes of KV a domain's clusters may have, None for no limit."""
        budget: int | None = self.domain_settings.get(domain, {}).get("kv_budget_bytes")
        return budget

    def reduced(self, clusters: Sequence[Cluster] | None = None) -> FloatArray:
        """Return centroids in the reduced space, [clusters, reduced]."""
        chosen = self.clusters if clusters is None else clusters
        if not chosen:
            return np.empty((0, 0), np.float32)
        return self.projection.transform(np.stack([c.centroid for c in chosen]))

    def is_same_as(self, other: "Plan") -> bool:
        """Tell whether two plans differ in nothing but their version and what made them."""
        if len(self.clusters) != len(other.clusters) or not _are_equal_arrays(self, other):
            return False
        one, two = (replace(p, version=0, source="") for p in (self, other))
        return _texts(one) == _texts(two)

    def grown(self, cluster: Cluster, passages: Mapping[str, Passage]) -> "Plan":
        """Return the plan with one more cluster."""
        return replace(
            self, clusters=(*self.clusters, cluster), passages={**self.passages, **passages}
        )


def _texts(plan: Plan) -> bytes:
    """Return what is not an array, as JSON."""
    texts = {
        "namespace": plan.namespace,
        "version": plan.version,
        "is_online": plan.is_online,
        "domain_settings": {d: dict(s) for d, s in plan.domain_settings.items()},
        "source": plan.source,
        "settings": dict(plan.settings),
        "clusters": [
            {
                "representative": c.representative,
                "members": c.members,
                "pins": c.pins,
                "num_members": c.num_members,
                "domain": c.domain,
                "guests": c.guests,
            }
            for c in plan.clusters
        ],
        "passages": {p.id: [p.text, dict(p.metadata)] for p in plan.passages.values()},
    }
    return json.dumps(texts, default=str).encode()


def _arrays(plan: Plan) -> dict[str, Any]:
    dim = plan.clusters[0].centroid.shape[0] if plan.clusters else 1
    return {
        "mean": plan.projection.mean,
        "components": plan.projection.components,
        "centroids": np.array([c.centroid for c in plan.clusters], np.float32).reshape(-1, dim),
        "radii": np.array([c.radius for c in plan.clusters], np.float64),
    }


def _are_equal_arrays(one: Plan, other: Plan) -> bool:
    mine, theirs = _arrays(one), _arrays(other)
    return all(np.array_equal(mine[name], theirs[name], equal_nan=True) for name in mine)


def _to_bytes(plan: Plan) -> bytes:
    buffer = io.BytesIO()
    np.savez(buffer, **_arrays(plan), texts=np.frombuffer(_texts(plan), np.uint8))
    return buffer.getvalue()


def _from_bytes(payload: bytes) -> Plan:
    arrays = read_arrays(payload)
    texts = read_texts(arrays["texts"].tobytes())
    projection = Projection(arrays["mean"], arrays["components"])
    centroids, radii = arrays["centroids"], arrays["radii"]
    require_fitting(projection, centroids, radii, len(texts["clusters"]))
    clusters = tuple(
        Cluster(
            id=i,
            centroid=centroids[i],
            representative=c["representative"],
            members=tuple(c["members"]),
            pins=tuple(c["pins"]),
            radius=float(radii[i]),
            num_members=c["num_members"],
            domain=c["domain"],
            guests=tuple(c["guests"]),
        )
        for i, c in enumerate(texts["clusters"])
    )
    passages = {i: Passage(i, text, meta) for i, (text, meta) in texts["passages"].items()}
    return Plan(
        texts["namespace"],
        texts["version"],
        projection,
        clusters,
        passages,
        texts["is_online"],
        texts["domain_settings"],
        texts["source"],
        texts["settings"],
    )


def save_plan(plan: Plan, path: Path, vault: Vault = IN_THE_CLEAR) -> None:
    """Write a plan file atomically."""
    payload = _to_bytes(plan)
    vault.write(path, MAGIC, hashlib.sha256(payload).digest(), payload)


def load_plan(path: Path, vault: Vault = IN_THE_CLEAR) -> Plan:
    """Read and verify a plan file.

    Raises:
        CacheCorrupt: The file is truncated, altered or cannot be read.
        CacheForbidden: It belongs to somebody else.
        CacheMismatch: It is not a plan of this format version, or not from this vault.
    """
    try:
        raw = vault.read(path, MAX_PLAN_BYTES)
    except PermissionError as error:
        raise forbidden(path) from error
    except OSError as error:
        raise CacheCorrupt(path, f"cannot be read ({error.strerror})") from error
    if raw[:8] != MAGIC:
        raise CacheMismatch(str(path), expected=MAGIC.decode(), found=repr(raw[:8]))
    if hashlib.sha256(raw[40:]).digest() != raw[8:40]:
        raise CacheCorrupt(path, "the checksum does not match")
    try:
        return _from_bytes(raw[40:])
    except (LookupError, ValueError) as error:
        raise CacheCorrupt(path, f"not a readable plan ({error})") from error


class PlanFolder:
    """The plan files of a store, and the pointer of each namespace to the version in force.

    Where the pointer is missing or damaged, the newest readable version is in force.
    """

    def __init__(self, folder: Path, vault: Vault = IN_THE_CLEAR) -> None:
        self.folder = folder
        self._vault = vault

    def files(self, namespace: str | None = None) -> list[Path]:
        """Return the plan files, oldest version first."""
        pattern = f"{namespace[-16:]}-*.plan" if namespace else "*.plan"
        return sorted(self.folder.glob(pattern))

    def versions(self, namespace: str) -> list[int]:
        """Return the numbers of a namespace's versions, oldest first."""
        found = (p.stem.rpartition("-")[2] for p in self.files(namespace))
        return sorted(int(number) for number in found if number.isdigit())

    def path(self, namespace: str, version: int) -> Path:
        return self.folder / f"{namespace[-16:]}-{version:06d}.plan"

    def pointer_path(self, namespace: str) -> Path:
        return self.folder / f"{namespace[-16:]}.pointer"

    def pointer(self, namespace: str) -> Pointer | None:
        """Return what a namespace's pointer says; None where there is none.

        Raises:
            CacheError: The pointer cannot be used.
        """
        return read_pointer(self.pointer_path(namespace))

    def point(self, namespace: str, pointer: Pointer) -> None:
        """Switch: from now on this is in force, for every process."""
        write_pointer(self.pointer_path(namespace), pointer)

    def read(self, path: Path) -> Plan:
        """Read a plan file, as `load_plan` does."""
        return load_plan(path, self._vault)

    def load(self, namespace: str, version: int) -> Plan:
        """Read one version.

        Raises:
            CacheError: It is damaged, missing, or another namespace's.
        """
        path = self.path(namespace, version)
        plan = self.read(path)
        if plan.namespace != namespace:
            raise CacheMismatch(str(path), expected=namespace, found=plan.namespace)
        return plan

    def in_force(self, namespace: str) -> tuple[Plan | None, list[CacheError]]:
        """Return the plan in force and what was wrong with files that should have been it."""
        problems: list[CacheError] = []
        try:
            pointer = self.pointer(namespace)
            if pointer is not None:
                return self.load(namespace, pointer.in_force), problems
        except CacheError as error:
            problems.append(error)
        plan, more = self.latest(namespace)
        known = {str(p) for p in problems}
        return plan, problems + [p for p in more if str(p) not in known]

    def save(self, plan: Plan) -> Path:
        path = self.folder / f"{plan.id}.plan"
        save_plan(plan, path, self._vault)
        return path

    def latest(self, namespace: str) -> tuple[Plan | None, list[CacheError]]:
        """Return the newest readable plan and what was wrong with newer ones."""
        problems: list[CacheError] = []
        for path in reversed(self.files(namespace)):
            try:
                plan = self.read(path)
            except CacheError as error:
                problems.append(error)
                continue
            if plan.namespace == namespace:
                return plan, problems
        return None, problems
