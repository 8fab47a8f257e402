"""Which clusters pin a passage, and which of their pins serve a retrieval best.

Owns an inverted index over the clusters of one plan. Knows neither tokens nor KV: passages are
texts, and a text costs what it is long.
"""

import itertools
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from centroidkv.routing.admission import distance
from centroidkv.types import Cluster, FloatArray, Passage

__all__ = ["Choice", "PinIndex"]


@dataclass(frozen=True, slots=True)
class Choice:
    """A cluster and how many of its pins, the first ones, go into the prompt."""

    cluster: Cluster
    num_pins: int


class PinIndex:
    """An inverted index from a text to the pin lists that hold it. For one thread at a time.

    A list that several clusters share is held once.
    """

    def __init__(self) -> None:
        self._numbers: dict[tuple[str, ...], int] = {}
        self._clusters: list[list[Cluster]] = []
        # Per text: list, position in it, length up to there, own length; [lists that hold it, 4].
        self._holding: dict[str, NDArray[np.int64]] = {}

    def put(self, clusters: Iterable[Cluster], passages: Mapping[str, Passage]) -> None:
        """Add clusters, whose pins are among `passages`, by id."""
        fresh: dict[str, list[tuple[int, int, int, int]]] = {}
        for cluster in clusters:
            texts = tuple(passages[p].text for p in cluster.pins if p in passages)
            if texts not in self._numbers:
                self._numbers[texts] = len(self._clusters)
                self._clusters.append([])
                for text, row in _rows(self._numbers[texts], texts):
                    fresh.setdefault(text, []).append(row)
            self._clusters[self._numbers[texts]].append(cluster)
        for text, rows in fresh.items():
            new, known = np.array(rows, np.int64), self._holding.get(text)
            self._holding[text] = new if known is None else np.concatenate([known, new])

    def best(
        self,
        found: Iterable[str],
        vector: FloatArray,
        *,
        carry_cost: float,
        first: Cluster,
        domain: str | None = None,
    ) -> Choice | None:
        """Return the leading pins with which `found` costs least, None if no pins spare anything.

        The cost is the length of what no pin covers, to be computed, plus `carry_cost` times the
        length of the pins, which are read from the store but stand in the prompt.

        Args:
            found: Texts of a retrieval.
            vector: The question's embedding, [dim]; of equals the nearest cluster is taken.
            carry_cost: Cost of a pinned character as a part of that of a computed one, in [0, 1).
            first: The cluster to take if it is among equals.
            domain: Only clusters that serve this domain; None for any.
        """
        held = [self._holding[t] for t in set(found) if t in self._holding]
        if not held:
            return None
        numbers, positions, ends, spared = _in_order(np.concatenate(held))
        costs = carry_cost * ends - spared
        for equals in _best_first(costs):
            rows = [
                (cluster, int(positions[i]))
                for i in equals
                for cluster in self._clusters[numbers[i]]
                if domain is None or domain in (cluster.domain, *cluster.guests)
            ]
            if rows:
                return Choice(*min(rows, key=lambda row: _preference(row, vector, first)))
        return None


def _rows(number: int, texts: Sequence[str]) -> Iterator[tuple[str, tuple[int, int, int, int]]]:
    """Yield each distinct text of a list with (list, position, length up to there, own length)."""
    end, known = 0, set()
    for position, text in enumerate(texts, start=1):
        end += len(text)
        if text not in known:
            known.add(text)
            yield text, (number, position, end, len(text))


def _best_first(costs: NDArray[np.floating[Any]]) -> Iterator[Sequence[int]]:
    """Yield the rows of each cost below zero, equals together, the lowest first."""
    lowest = costs.min()
    if lowest >= 0:
        return
    yield np.flatnonzero(costs == lowest).tolist()
    # Seldom asked for: only where no cluster of the domain is among the best.
    others = np.flatnonzero((costs > lowest) & (costs < 0))
    ranked = others[costs[others].argsort(kind="stable")].tolist()
    for _, equals in itertools.groupby(ranked, key=costs.__getitem__):
        yield list(equals)


def _in_order(events: NDArray[np.int64]) -> tuple[NDArray[np.int64], ...]:
    """Sort (list, position, end, length) and sum the lengths within each list up to each row."""
    # By list, then position; each text's own rows are in order already, so this only merges.
    longest = int(events[:, 1].max()) + 1
    events = events[(events[:, 0] * longest + events[:, 1]).argsort(kind="stable")]
    numbers, positions, ends, lengths = events.T
    total = lengths.cumsum()
    begins = np.flatnonzero(np.diff(numbers, prepend=-1))
    before = np.repeat((total - lengths)[begins], np.diff(np.append(begins, len(numbers))))
    return numbers, positions, ends, total - before


def _preference(
    row: tuple[Cluster, int], vector: FloatArray, first: Cluster
) -> tuple[bool, float, int, int]:
    cluster, num_pins = row
    return cluster.id != first.id, distance(vector, cluster.centroid), cluster.id, num_pins
