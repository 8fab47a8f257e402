"""What of a plan is no array, as it stands in a file: JSON, looked through before it is used.

Owns which keys there are and what may stand in them. Knows neither checksum nor arrays.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from centroidkv.bounds import plain_json
from centroidkv.routing.projection import Projection
from centroidkv.types import FloatArray

__all__ = ["read_texts", "require_fitting"]

_MOST_NAMESPACE = 1024
_MOST_VERSION = 10**6


def read_texts(raw: bytes) -> dict[str, Any]:
    """Parse a plan's texts; what an earlier version did not write has its default.

    Raises:
        ValueError: It is not JSON, or something in it is not what belongs there.
        LookupError: Something is missing.
    """
    found = _of(plain_json(raw), dict, "the texts")
    found = {"domain_settings": {}, "source": "", "settings": {}, **found}
    if len(_of(found["namespace"], str, "namespace")) > _MOST_NAMESPACE:
        raise ValueError("a namespace that long")
    if not 0 <= _of(found["version"], int, "version") < _MOST_VERSION:
        raise ValueError(f"version {found['version']}")
    _of(found["is_online"], bool, "is_online")
    _of(found["source"], str, "source")
    _of(found["settings"], dict, "settings")
    for settings in _of(found["domain_settings"], dict, "domain_settings").values():
        _require_budget(_of(settings, dict, "settings of a domain"))
    found["clusters"] = [_cluster(c) for c in _of(found["clusters"], list, "clusters")]
    for passage in _of(found["passages"], dict, "passages").values():
        text, metadata = _of(passage, list, "a passage")
        _of(text, str, "a passage's text")
        _of(metadata, dict, "a passage's metadata")
    return found


def require_fitting(
    projection: Projection, centroids: FloatArray, radii: FloatArray, num_clusters: int
) -> None:
    """Refuse arrays that do not belong together, or hold what is no number.

    Raises:
        ValueError: They are not [dim], [reduced, dim], [clusters, dim] and [clusters].
    """
    arrays = (projection.mean, projection.components, centroids, radii)
    if [a.ndim for a in arrays] != [1, 2, 2, 1] or any(a.dtype.kind != "f" for a in arrays):
        raise ValueError("arrays of odd shapes or types")
    if not len(centroids) == len(radii) == num_clusters:
        raise ValueError("centroids of another number than clusters")
    dim = centroids.shape[1]
    projected = (projection.mean.shape[0], projection.components.shape[1])
    if num_clusters and not projection.is_identity and projected != (dim, dim):
        raise ValueError("a projection of another dimension than the centroids")
    # A radius may be infinite: it admits every question.
    if not all(np.isfinite(a).all() for a in arrays[:3]) or np.isnan(radii).any():
        raise ValueError("a number that is none")


def _cluster(found: Any) -> Mapping[str, Any]:
    cluster = {"guests": [], **_of(found, dict, "a cluster")}
    _of(cluster["representative"], str, "representative")
    _of(cluster["num_members"], int, "num_members")
    _of(cluster["domain"], str, "domain")
    for name in ("members", "pins", "guests"):
        _require_texts(_of(cluster[name], list, name), name)
    return cluster


def _require_texts(found: Sequence[Any], name: str) -> None:
    for one in found:
        _of(one, str, name)


def _require_budget(settings: Mapping[str, Any]) -> None:
    budget = settings.get("kv_budget_bytes")
    if budget is not None and not (type(budget) in (int, float) and budget >= 0):
        raise ValueError(f"kv_budget_bytes {budget!r:.40}")


def _of(found: Any, kind: type, name: str) -> Any:
    """Return a value of the type it has to be of; True is no whole number.

    Raises:
        ValueError: It is of another.
    """
    if type(found) is not kind:
        raise ValueError(f"{name} is of type {type(found).__name__}, not {kind.__name__}")
    return found
