"""How past questions become clusters and pins: validated, frozen settings."""

from dataclasses import dataclass
from typing import Literal, get_args

from centroidkv.settings import Settings, is_count, is_number, require

__all__ = ["Clustering", "PlanConfig"]

Clustering = Literal["spectral", "kmeans", "gmm", "agglomerative", "hdbscan", "consensus"]


@dataclass(frozen=True, slots=True)
class PlanConfig(Settings):
    """How past questions become clusters and pins.

    `num_clusters=None` takes one cluster for about ten questions; `auto`, there or for `pca_dim`,
    chooses from the questions themselves, within about `auto_budget_s` seconds. There are never
    more clusters than distinct questions. `clustering` is spectral, kmeans, gmm, agglomerative,
    consensus (of spectral, kmeans and agglomerative) or hdbscan, which finds its own number and
    ignores `num_clusters`. Where the number is chosen, spectral becomes consensus, which forgives
    a number that is not quite right. `radius_quantile` is the share of a cluster's own members
    that its radius admits; of unseen questions it is a little less, and with None every question
    is admitted. A cluster pins at most `max_pins` passages of `max_pin_tokens` tokens; with
    `store_tokens`, the pins of all clusters take at most so many tokens in the store, shared
    prefixes counted once: clusters then share lists.
    """

    num_clusters: int | Literal["auto"] | None = None
    pca_dim: int | Literal["auto"] = 32
    clustering: Clustering = "spectral"
    auto_budget_s: float = 60.0
    max_pins: int = 8
    max_pin_tokens: int = 1500
    store_tokens: int | None = None
    retrieval_depth: int = 16
    radius_quantile: float | None = 0.98
    seed: int = 0

    def __post_init__(self) -> None:
        k, dim = self.num_clusters, self.pca_dim
        require(
            k is None or k == "auto" or is_count(k, 1),
            f"num_clusters must be a whole number of at least 1, 'auto' or None, not {k!r}",
        )
        require(
            dim == "auto" or is_count(dim, 1),
            f"pca_dim must be a whole number of at least 1, or 'auto', not {dim!r}",
        )
        methods = get_args(Clustering)
        require(
            self.clustering in methods,
            f"clustering must be one of {', '.join(methods)}, not {self.clustering!r}",
        )
        require(
            is_number(self.auto_budget_s) and self.auto_budget_s > 0,
            f"auto_budget_s must be a number of seconds above 0, not {self.auto_budget_s!r}",
        )
        for name in ("max_pins", "max_pin_tokens", "retrieval_depth"):
            value = getattr(self, name)
            require(
                is_count(value, 1), f"{name} must be a whole number of at least 1, not {value!r}"
            )
        require(
            self.store_tokens is None or is_count(self.store_tokens, 1),
            f"store_tokens must be a number of tokens of at least 1, or None, "
            f"not {self.store_tokens!r}",
        )
        require(
            self.radius_quantile is None
            or (is_number(self.radius_quantile) and 0 < self.radius_quantile <= 1),
            f"radius_quantile must be a number in (0, 1], or None, not {self.radius_quantile!r}",
        )
        require(is_count(self.seed, 0), f"seed must be a whole number, not {self.seed!r}")
